"""`python -m otel_feedback`: the command `otel-feedback`."""

from otel_feedback.cli._main import main

if __name__ == "__main__":
    main()
