from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_feedback._dialects import (
    BAGGAGE_KEYS,
    BRAINTRUST_PARENT,
    CHAT,
    CONTEXT_KEYS,
    CONVERSATION_ID,
    DIALECTS,
    GENERATE_CONTENT,
    HANDLE_ATTRIBUTES,
    INHERITED,
    MARKERS,
    NOT_A_CALL,
    RESPONSE_ID,
    SILENT_SCOPES,
    TEXT_COMPLETION,
    USER_ID,
    handle_attributes,
    inherited_attributes,
    is_unicode,
    operation_of,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


class TestOperation:
    @pytest.mark.parametrize(
        ("attributes", "operation"),
        [
            ({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}, CHAT),
            ({"gen_ai.operation.name": "text_completion"}, TEXT_COMPLETION),
            ({"gen_ai.operation.name": "generate_content", "gen_ai.system": "gcp.gemini"}, GENERATE_CONTENT),
            ({"gen_ai.system": "openai", "gen_ai.request.model": "gpt-4o"}, CHAT),
            ({"openinference.span.kind": "LLM"}, CHAT),
            ({"llm.request.type": "chat", "gen_ai.system": "OpenAI"}, CHAT),
            ({"llm.request.type": "completion", "gen_ai.system": "OpenAI"}, TEXT_COMPLETION),
            ({"langfuse.observation.type": "generation"}, CHAT),
            ({"mlflow.spanType": '"CHAT_MODEL"'}, CHAT),
            ({"mlflow.spanType": '"LLM"'}, TEXT_COMPLETION),
            ({"mlflow.spanType": "LLM"}, TEXT_COMPLETION),
            ({"langsmith.span.kind": "llm"}, CHAT),
            ({"langsmith.span.kind": "llm", "gen_ai.operation.name": "chat", "gen_ai.system": "openai"}, CHAT),
            # OpenLIT, new and old.
            ({"telemetry.sdk.name": "openlit", "gen_ai.operation.name": "chat", "gen_ai.system": "openai"}, CHAT),
            ({"telemetry.sdk.name": "openlit", "gen_ai.type": "chat", "gen_ai.system": "openai"}, CHAT),
            # OpenInference with `enable_genai_semconv`, and OpenLLMetry since it follows OpenTelemetry.
            ({"openinference.span.kind": "LLM", "llm.system": "openai", "gen_ai.operation.name": "chat"}, CHAT),
            ({"gen_ai.operation.name": "text_completion", "gen_ai.is_streaming": True}, TEXT_COMPLETION),
            # Logfire's own spans beside their GenAI attributes.
            ({"logfire.span_type": "span", "gen_ai.operation.name": "chat"}, CHAT),
        ],
    )
    def test_an_llm_call_is_recognised_in_every_dialect(self, attributes: Any, operation: Any) -> None:
        """
        What an instrumentation writes on an LLM call gives OpenTelemetry's name of the operation.
        """
        assert operation == operation_of(attributes)

    @pytest.mark.parametrize(
        "attributes",
        [
            {},
            {"http.request.method": "POST"},
            {"db.system": "chroma"},
            {"gen_ai.operation.name": "embeddings", "gen_ai.system": "openai"},
            {"gen_ai.operation.name": "execute_tool", "gen_ai.system": "openai"},
            {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "openai"},
            {"gen_ai.operation.name": "create_agent"},
            {"gen_ai.operation.name": "embedding", "gen_ai.system": "openai"},
            {"openinference.span.kind": "EMBEDDING"},
            {"openinference.span.kind": "TOOL"},
            {"openinference.span.kind": "AGENT"},
            {"openinference.span.kind": "CHAIN", "gen_ai.system": "openai"},
            {"openinference.span.kind": "RETRIEVER"},
            {"llm.request.type": "embedding", "gen_ai.system": "OpenAI"},
            {"llm.request.type": "rerank", "gen_ai.system": "Cohere"},
            {"traceloop.span.kind": "workflow"},
            {"traceloop.span.kind": "agent", "gen_ai.system": "openai_agents"},
            {"traceloop.span.kind": "tool", "gen_ai.system": "openai_agents"},
            {"langfuse.observation.type": "span"},
            {"langfuse.observation.type": "embedding"},
            {"mlflow.spanType": '"AGENT"'},
            {"mlflow.spanType": '"EMBEDDING"'},
            {"langsmith.span.kind": "tool"},
            {"langsmith.span.kind": "chain", "gen_ai.system": "langchain"},
            # LangSmith's exporter calls the filling in of a template a chat.
            {"langsmith.span.kind": "prompt", "gen_ai.operation.name": "chat", "gen_ai.system": "langchain"},
            {"langsmith.span.kind": "retriever", "gen_ai.operation.name": "embeddings"},
            {"gen_ai.type": "embedding", "gen_ai.system": "openai"},
            {"gen_ai.type": "vectordb", "db.system": "chroma"},
            {"gen_ai.operation.name": "invoke_workflow"},
            {"gen_ai.operation.name": "retrieval"},
            {"openinference.span.kind": "PROMPT", "llm.system": "openai"},
            {"traceloop.span.kind": "task", "gen_ai.operation.name": "chat"},
            {"logfire.span_type": "pending_span", "gen_ai.operation.name": "chat"},
            {"logfire.span_type": "log", "gen_ai.system": "openai"},
            {"logfire.span_type": "annotation", "gen_ai.system": "openai"},
        ],
    )
    def test_any_other_span_is_no_llm_call(self, attributes: Any) -> None:
        """
        An embedding, a tool, an agent, a chain, a placeholder or a span of something else has no operation.
        """
        assert operation_of(attributes) is None

    @pytest.mark.parametrize(
        ("dialect", "word", "operation"),
        [
            (dialect, word, operation)
            for dialect in DIALECTS
            for word, operation in (dialect.operations or {"anything": CHAT}).items()
        ],
    )
    def test_every_row_of_the_table_is_reached_in_any_case_and_quoted(
        self, dialect: Any, word: Any, operation: Any
    ) -> None:
        """
        Alone on a span, a marker says its operation in lower case, in capitals and as JSON text.
        """
        spoken = [word, word.upper(), f'"{word}"']

        assert [operation] * 3 == [operation_of({dialect.marker: each}) for each in spoken]

    @pytest.mark.parametrize("marker", sorted(MARKERS - {"gen_ai.system"}))
    @pytest.mark.parametrize("value", [True, 0, 1.5, ("chat", "llm"), [], {}, None, b"chat", ""])
    def test_a_marker_that_is_no_word_is_no_llm_call(self, marker: Any, value: Any) -> None:
        """
        Whatever type a foreign instrumentation writes, nothing is raised and nothing is recognised.
        """
        assert operation_of({marker: value}) is None

    @pytest.mark.parametrize("attribute", sorted(NOT_A_CALL))
    @pytest.mark.parametrize("value", [0, ("log",), [], {}, None, "", "anything"])
    def test_an_unknown_word_about_being_no_call_changes_nothing(self, attribute: Any, value: Any) -> None:
        """
        Only the words of the table take a span's marker away.
        """
        assert CHAT == operation_of({attribute: value, "gen_ai.system": "openai"})

    def test_the_oldest_form_comes_last(self) -> None:
        """
        `gen_ai.system` also stands on embeddings and tools, so every other dialect is asked before it.
        """
        assert "gen_ai.system" == DIALECTS[-1].marker

    @given(st.dictionaries(st.sampled_from(sorted(MARKERS | set(NOT_A_CALL))), st.text(max_size=12)))
    def test_an_operation_is_one_of_three_or_none(self, attributes: Any) -> None:
        """
        No combination of markers raises or makes up a name.
        """
        assert operation_of(attributes) in {CHAT, TEXT_COMPLETION, GENERATE_CONTENT, None}


class TestHandleAttributes:
    @pytest.mark.parametrize(
        ("place", "name"), [(place, name) for name, places in HANDLE_ATTRIBUTES.items() for place in places]
    )
    def test_every_place_is_read_under_one_name(self, place: Any, name: str) -> None:
        """
        An attribute that stands anywhere in the table is kept under our name for it.
        """
        assert {name: "x"} == {
            found: value for found, value in handle_attributes({place: "x"}).items() if found == name
        }

    @pytest.mark.parametrize(
        ("name", "places"), [(name, places) for name, places in HANDLE_ATTRIBUTES.items() if len(places) > 1]
    )
    def test_the_best_place_wins(self, name: str, places: Any) -> None:
        """
        Of several places that hold something the first of the table is taken, whatever the span's order.
        """
        assert "0" == handle_attributes({place: str(at) for at, place in reversed(list(enumerate(places)))})[name]

    @pytest.mark.parametrize("value", ["", None, 7, True, 1.5, b"x", ("x",), ["x"], {"x": "x"}, "\ud83d"])
    def test_what_is_no_text_gives_way_to_the_next_place(self, value: Any) -> None:
        """
        An empty, foreign or half-encoded value counts as absent: no store could keep it.
        """
        assert {CONVERSATION_ID: "s-1"} == handle_attributes({CONVERSATION_ID: value, "session.id": "s-1"})

    def test_a_json_text_is_kept_without_its_quotes(self) -> None:
        """
        MLflow's attributes are JSON; another one's quotes belong to it.
        """
        assert {"gen_ai.request.model": "gpt-4o"} == handle_attributes({"mlflow.llm.model": '"gpt-4o"'})
        assert {"gen_ai.request.model": '"gpt-4o"'} == handle_attributes({"llm.model_name": '"gpt-4o"'})

    def test_a_project_is_no_conversation(self) -> None:
        """
        What LangSmith calls the session of a trace is the project it is filed under, the same for everybody.
        """
        assert {} == handle_attributes({"langsmith.trace.session_id": "6c1f"})

    def test_prompts_and_answers_are_never_kept(self) -> None:
        """
        Content, wherever an instrumentation writes it, has no row.
        """
        content = {
            "gen_ai.prompt.0.content": "secret",
            "gen_ai.input.messages": "secret",
            "gen_ai.output.messages": "secret",
            "gen_ai.completion.0.content": "secret",
            "input.value": "secret",
            "output.value": "secret",
            "llm.prompts": "secret",
            "langfuse.observation.input": "secret",
            "mlflow.spanInputs": "secret",
        }

        assert {RESPONSE_ID: "r-1"} == handle_attributes({**content, RESPONSE_ID: "r-1"})

    @given(st.dictionaries(st.sampled_from([RESPONSE_ID, CONVERSATION_ID, BRAINTRUST_PARENT, "user.id"]), TEXTS))
    def test_what_was_kept_is_kept_again(self, attributes: Any) -> None:
        """
        Reading a handle's own attributes gives the same ones.
        """
        assert attributes == handle_attributes(handle_attributes(attributes))


class TestInherited:
    def test_the_nearest_that_says_it_is_heard(self) -> None:
        """
        A parent before its own parents, these before the context, the context before the baggage; each id by itself.
        """
        parents = [{"http.route": "/"}, {"session.id": "near"}, {"session.id": "far", "enduser.id": "far"}]
        context, baggage = {"session.id": "context", "user.id": "context"}, {"session.id": "baggage"}

        assert {CONVERSATION_ID: "near", USER_ID: "far"} == inherited_attributes({}, parents, context, baggage)
        assert {CONVERSATION_ID: "context", USER_ID: "context"} == inherited_attributes({}, [], context, baggage)
        assert {CONVERSATION_ID: "baggage"} == inherited_attributes({}, [], {}, baggage)

    @pytest.mark.parametrize("known", [{CONVERSATION_ID: "own"}, {CONVERSATION_ID: "own", USER_ID: "own"}])
    def test_what_a_span_says_itself_is_not_inherited(self, known: Any) -> None:
        """
        Only what is missing is looked for.
        """
        context = {"session.id": "context", "user.id": "context"}

        assert {CONVERSATION_ID, USER_ID} - set(known) == set(inherited_attributes(known, [], context, {}))

    @pytest.mark.parametrize(("name", "path"), [(name, path) for name in INHERITED for path in CONTEXT_KEYS[name]])
    def test_every_key_of_the_context_is_read(self, name: str, path: tuple[str, ...]) -> None:
        """
        The key of each SDK is enough; of one that holds several, the entry in it.
        """
        value: Any = "x"
        for key in reversed(path):
            value = {key: value}

        assert "x" == inherited_attributes({}, [], value, {})[name]

    @pytest.mark.parametrize(("name", "key"), [(name, key) for name in INHERITED for key in BAGGAGE_KEYS[name]])
    def test_every_key_of_the_baggage_is_read(self, name: str, key: str) -> None:
        """
        The entry of each SDK is enough.
        """
        assert {name: "x"} == inherited_attributes({}, [], {}, {key: "x"})

    @pytest.mark.parametrize("value", [None, 7, "", "\ud83d", ["s-1"], {"other": "s-1"}])
    def test_what_is_no_text_is_not_inherited(self, value: Any) -> None:
        """
        A foreign value in any of the places is as good as none.
        """
        context = {"session.id": value, "association_properties": value}

        assert {} == inherited_attributes({}, [{"session.id": value}], context, {"session.id": value})

    def test_nothing_else_is_inherited(self) -> None:
        """
        A parent's model, answer or route is not its child's.
        """
        parent = dict.fromkeys(HANDLE_ATTRIBUTES, "x")

        assert set(INHERITED) == set(inherited_attributes({}, [parent], {}, {}))


class TestSilentScopes:
    @pytest.mark.parametrize(
        "scope",
        [
            "opentelemetry.instrumentation.httpx",
            "opentelemetry.instrumentation.fastapi",
            "opentelemetry.instrumentation.kafka",
            "opentelemetry.instrumentation.pyramid.callbacks",
            "opentelemetry.instrumentation.sqlalchemy",
        ],
    )
    def test_the_plumbing_is_silent(self, scope: str) -> None:
        """
        The tracers of the web, of databases and of queues open no LLM span.
        """
        assert scope in SILENT_SCOPES

    @pytest.mark.parametrize(
        "scope",
        [
            "opentelemetry.instrumentation.openai.v1",
            "opentelemetry.util.genai.handler",
            "openinference.instrumentation.openai",
            "opentelemetry.instrumentation.botocore.bedrock-runtime",
            "langfuse-sdk",
            "pydantic-ai",
            "app",
            "",
        ],
    )
    def test_whoever_may_speak_is_listened_to(self, scope: str) -> None:
        """
        A tracer of models, of an agent framework or of the application is never passed over.
        """
        assert scope not in SILENT_SCOPES


@given(st.text(st.characters(codec=None)))
def test_a_text_is_unicode_when_it_has_no_surrogate(text: str) -> None:
    """
    Half of a pair anywhere in a text makes it one that cannot be written.
    """
    assert is_unicode(text) == (not any("\ud800" <= character <= "\udfff" for character in text))
