"""The command `otel-feedback`; needs the extra `[cli]`, and `[sandbox]` for the commands that start one."""
