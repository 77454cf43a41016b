import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_feedback import ConfigurationError, Settings
from otel_feedback import environment_variables as env

CHOICES = [(name, choice) for name, variable in env.VARIABLES.items() for choice in variable.choices]
# Each number with the lowest and the highest that there may be.
NUMBERS = {
    env.OTEL_FEEDBACK_KEY_WAIT_MILLIS: (0, 999_999_999),
    env.OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS: (0, 999_999_999),
    env.OTEL_FEEDBACK_MAX_QUEUE_SIZE: (1, 999_999_999),
    env.OTEL_FEEDBACK_MAX_EXPORT_BATCH_SIZE: (1, 10_000),
    env.OTEL_FEEDBACK_CONCURRENCY: (1, 100),
    env.OTEL_FEEDBACK_RETENTION_DAYS: (1, 3_650),
}
# Which field each variable of the pipeline fills; the rest are the exporters' own.
FIELDS = {
    env.OTEL_FEEDBACK_DISABLED: "disabled",
    env.OTEL_FEEDBACK_EXPORTERS: "exporters",
    env.OTEL_FEEDBACK_STORE_URL: "store_url",
    env.OTEL_FEEDBACK_KEY_WAIT_MILLIS: "key_wait_millis",
    env.OTEL_FEEDBACK_ON_UNKNOWN_KEY: "on_unknown_key",
    env.OTEL_FEEDBACK_DURABILITY: "durability",
    env.OTEL_FEEDBACK_DELIVERY: "delivery",
    env.OTEL_FEEDBACK_SIGNING_KEYS: "signing_keys",
    env.OTEL_FEEDBACK_ON_UNSAMPLED: "on_unsampled",
    env.OTEL_FEEDBACK_UNDECLARED: "undeclared",
    env.OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS: "exit_timeout_millis",
    env.OTEL_FEEDBACK_MAX_QUEUE_SIZE: "max_queue_size",
    env.OTEL_FEEDBACK_MAX_EXPORT_BATCH_SIZE: "max_export_batch_size",
    env.OTEL_FEEDBACK_CONCURRENCY: "concurrency",
    env.OTEL_FEEDBACK_RETENTION_DAYS: "retention_days",
}


class TestVariables:
    def test_every_constant_is_a_row_of_the_table_under_its_own_name(self) -> None:
        """
        A variable that is read has a default and a meaning, and no row is about nothing.
        """
        constants = {name: value for name, value in vars(env).items() if isinstance(value, str) and name.isupper()}

        assert {name: name for name in env.VARIABLES} == constants
        assert all(variable.meaning for variable in env.VARIABLES.values())

    def test_a_key_is_marked_as_a_secret(self) -> None:
        """
        Whatever shows the table to somebody knows which values to leave out.
        """
        assert {"ORQ_API_KEY", "BRAINTRUST_API_KEY", "WANDB_API_KEY", "OTEL_FEEDBACK_SIGNING_KEYS"} == {
            name for name, variable in env.VARIABLES.items() if variable.secret
        }

    @pytest.mark.parametrize(("name", "variable"), [(name, v) for name, v in env.VARIABLES.items() if v.choices])
    def test_a_default_is_one_of_the_choices(self, name: str, variable: Any) -> None:
        """
        Unset is never an error.
        """
        assert variable.default in variable.choices

    @pytest.mark.parametrize("name", env.VARIABLES)
    @pytest.mark.parametrize("environ", [{}, {"": ""}, None])
    def test_an_unset_variable_is_its_default(self, name: str, environ: Any) -> None:
        """
        So it is in the process's own environment, which the tests keep scrubbed.
        """
        assert env.VARIABLES[name].default == env.read(name, environ)

    @pytest.mark.parametrize("blank", ["", " ", "\t\n"])
    @pytest.mark.parametrize("name", env.VARIABLES)
    def test_a_blank_variable_is_its_default(self, name: str, blank: Any) -> None:
        """
        A compose file with nothing after the equals sign sets nothing.
        """
        assert env.VARIABLES[name].default == env.read(name, {name: blank})

    def test_a_value_is_stripped(self) -> None:
        """
        A key that was read from a file has lost the file's last line break.
        """
        assert "key" == env.read(env.ORQ_API_KEY, {env.ORQ_API_KEY: " key\r\n"})

    def test_the_process_s_own_environment_is_read_when_it_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        What is set after the import counts.
        """
        monkeypatch.setenv(env.ORQ_BASE_URL, "http://127.0.0.1:1")

        assert "http://127.0.0.1:1" == env.read(env.ORQ_BASE_URL)

    def test_nothing_is_read_at_import(self) -> None:
        """
        A broken setting breaks no import, only who reads it.
        """
        program = (
            "import os; os.environ['OTEL_FEEDBACK_DELIVERY'] = 'pigeon'; "
            "import otel_feedback; from otel_feedback import Settings; print(Settings())"
        )
        ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

        assert "delivery='thread'" in ran.stdout


class TestFromEnvironment:
    def test_an_empty_environment_gives_the_defaults(self) -> None:
        """
        The table of variables and the fields of the value agree on every default.
        """
        assert Settings() == Settings.from_environment({}) == Settings.from_environment()

    def test_every_field_has_a_variable(self) -> None:
        """
        Nothing can be set in code alone.
        """
        assert [field.name for field in dataclasses.fields(Settings)] == list(FIELDS.values())
        assert {name for name in env.VARIABLES if name.startswith("OTEL_FEEDBACK_")} - {
            env.OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS
        } == set(FIELDS)

    def test_everything_can_be_set(self) -> None:
        """
        Each variable fills its own field.
        """
        settings = Settings.from_environment(
            {
                "OTEL_FEEDBACK_DISABLED": "true",
                "OTEL_FEEDBACK_EXPORTERS": "orq,weave",
                "OTEL_FEEDBACK_STORE_URL": "memory:",
                "OTEL_FEEDBACK_KEY_WAIT_MILLIS": "0",
                "OTEL_FEEDBACK_ON_UNKNOWN_KEY": "park",
                "OTEL_FEEDBACK_DURABILITY": "process",
                "OTEL_FEEDBACK_DELIVERY": "none",
                "OTEL_FEEDBACK_ON_UNSAMPLED": "export",
                "OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS": "5",
                "OTEL_FEEDBACK_MAX_QUEUE_SIZE": "6",
                "OTEL_FEEDBACK_MAX_EXPORT_BATCH_SIZE": "7",
                "OTEL_FEEDBACK_CONCURRENCY": "8",
                "OTEL_FEEDBACK_RETENTION_DAYS": "9",
            }
        )

        assert (
            Settings(
                disabled=True,
                exporters=("orq", "weave"),
                store_url="memory:",
                key_wait_millis=0,
                on_unknown_key="park",
                durability="process",
                delivery="none",
                on_unsampled="export",
                exit_timeout_millis=5,
                max_queue_size=6,
                max_export_batch_size=7,
                concurrency=8,
                retention_days=9,
            )
            == settings
        )

    @pytest.mark.parametrize(("name", "choice"), CHOICES)
    def test_a_choice_is_read_in_any_case(self, name: str, choice: Any) -> None:
        """
        TRUE, True and true are one word.
        """
        read = [getattr(Settings.from_environment({name: text}), FIELDS[name]) for text in (choice, choice.upper())]

        assert [{"true": True, "false": False}.get(choice, choice)] * 2 == read

    @pytest.mark.parametrize("name", [name for name, variable in env.VARIABLES.items() if variable.choices])
    @pytest.mark.parametrize("text", ["maybe", "1", "disk,process", "thre\u0430d"])
    def test_what_is_no_choice_is_refused(self, name: str, text: str) -> None:
        """
        A misspelt setting is never silently the default; the error names the variable and lists the choices.
        """
        with pytest.raises(ConfigurationError, match=f"{name} must be one of") as caught:
            Settings.from_environment({name: text})

        assert name == caught.value.setting
        assert all(choice in str(caught.value) for choice in env.VARIABLES[name].choices)

    @pytest.mark.parametrize("name", NUMBERS)
    @given(st.data())
    def test_a_number_is_read(self, name: str, data: Any) -> None:
        """
        From the lowest to the highest that there may be; nought milliseconds too: who wants no wait gets none.
        """
        lowest, highest = NUMBERS[name]
        number = data.draw(st.sampled_from([lowest, highest]) | st.integers(lowest, highest))

        assert number == getattr(Settings.from_environment({name: str(number)}), FIELDS[name])

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize(
        "text", ["-1", "1.5", "1s", "1e3", "ten", "+5", "1_000", "0x10", "\u0661", "²", "1000000000", "9" * 5_000]
    )
    def test_what_is_no_number_is_refused(self, name: str, text: str) -> None:
        """
        So is one that no clock could wait for, even where Python itself could not read it.
        """
        lowest, highest = NUMBERS[name]
        message = f"{name} must be a whole number, from {lowest} to {highest}"
        with pytest.raises(ConfigurationError, match=f"^{message}$") as caught:
            Settings.from_environment({name: text})

        assert name == caught.value.setting

    @pytest.mark.parametrize(("name", "limits"), NUMBERS.items())
    def test_a_number_beyond_its_limits_is_refused(self, name: str, limits: tuple[int, int]) -> None:
        """
        No queue, no batch, no thread or no day is no setting that anybody means, nor is one too many of them.
        """
        lowest, highest = limits
        for number in (lowest - 1, highest + 1):
            with pytest.raises(ConfigurationError, match=f"from {lowest} to {highest}") as in_the_environment:
                Settings.from_environment({name: str(number)})
            with pytest.raises(ConfigurationError, match=f"from {lowest} to {highest}") as in_code:
                Settings(**{FIELDS[name]: number})  # type: ignore[arg-type]  # a field that is a number

            assert (name, FIELDS[name]) == (in_the_environment.value.setting, in_code.value.setting)

    @pytest.mark.parametrize(("name", "limits"), NUMBERS.items())
    def test_a_number_at_its_limits_is_taken_in_code(self, name: str, limits: tuple[int, int]) -> None:
        """
        The environment and the code agree on what may be set.
        """
        field = FIELDS[name]

        assert list(limits) == [getattr(Settings(**{field: number}), field) for number in limits]  # type: ignore[arg-type]  # a field that is a number

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("", ()),
            (",", ()),
            ("orq", ("orq",)),
            (" orq , weave ,", ("orq", "weave")),
            ("weave,orq", ("weave", "orq")),
            ("orq,weave,orq", ("orq", "weave")),
        ],
    )
    def test_names_are_read_once_each_in_their_order(self, text: str, names: Any) -> None:
        """
        Spaces and a comma too many change nothing.
        """
        assert names == Settings.from_environment({env.OTEL_FEEDBACK_EXPORTERS: text}).exporters


class TestInCode:
    @pytest.mark.parametrize(
        "given_field",
        [
            {"on_unknown_key": "prak"},
            {"durability": "Disk"},
            {"delivery": None},
            {"on_unsampled": True},
            {"key_wait_millis": -1},
            {"exit_timeout_millis": -1},
            {"max_queue_size": "100"},
            {"max_export_batch_size": 1.5},
            {"concurrency": None},
            {"retention_days": 90.0},
        ],
    )
    def test_what_the_environment_could_not_say_is_refused_too(self, given_field: Any) -> None:
        """
        A misspelt durability would otherwise be the weaker one, and a negative wait would never look.
        """
        with pytest.raises(ConfigurationError, match="must be") as caught:
            Settings(**given_field)

        assert [caught.value.setting] == list(given_field)

    def test_settings_cannot_be_changed(self) -> None:
        """
        What a pipeline was built from stays what it was.
        """
        with pytest.raises(dataclasses.FrozenInstanceError):
            Settings().disabled = True  # type: ignore[misc]  # that is what is tested
