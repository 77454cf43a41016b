import asyncio
import socket
import subprocess
import sys
import threading
import time
import weakref

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from sandbox_bench import AUTH, NOON

from otel_feedback.sandbox import Fault, Sandbox, Switches
from otel_feedback.sandbox._connection import Connection

BODY = {"property": "correction", "value": "x", "trace_id": "0" * 31 + "1", "product": "otel"}


def post(sandbox, **given):
    return httpx.post(f"{sandbox.url}/orq/v2/feedback", json=BODY, headers=AUTH["orq"], **given)


class TestLife:
    def test_it_listens_on_loopback_only(self, sandbox):
        """
        The address is 127.0.0.1 with a free port, and the page is there.
        """
        answer = httpx.get(sandbox.url)

        assert sandbox.url.startswith("http://127.0.0.1:")
        assert (200, "text/html; charset=utf-8") == (answer.status_code, answer.headers["content-type"])

    def test_starting_and_stopping_may_be_repeated(self):
        """
        A second start or stop does nothing; after a stop it can be started again and still knows everything.
        """
        sandbox = Sandbox()
        sandbox.start()
        sandbox.start()
        post(sandbox)
        first = repr(sandbox)
        sandbox.stop()
        sandbox.stop()
        stopped = repr(sandbox)
        with sandbox:
            after = httpx.get(f"{sandbox.url}/state").json()["requests"]

        assert first.startswith("<Sandbox http://127.0.0.1:")
        assert ("<Sandbox stopped>", 1, 1) == (stopped, after, len(sandbox.requests))

    def test_a_stopped_one_has_no_address(self):
        """
        Asking for the address of a sandbox that does not run says what to do.
        """
        with pytest.raises(RuntimeError, match="use it in a with statement"):
            Sandbox().url  # noqa: B018

    def test_one_that_is_dropped_open_warns(self):
        """
        A sandbox collected while it runs warns, and frees its port.
        """
        sandbox = Sandbox()
        sandbox.start()
        port = int(sandbox.url.rpartition(":")[2])
        dropped = weakref.ref(sandbox)
        with pytest.warns(ResourceWarning, match="was never stopped"):
            del sandbox

        assert dropped() is None
        socket.create_server(("127.0.0.1", port)).close()

    def test_one_left_open_does_not_keep_a_program_from_ending(self):
        """
        A program that ends without stopping its sandbox ends.
        """
        code = "from otel_feedback.sandbox import Sandbox; sandbox = Sandbox(); sandbox.start(); print(sandbox.url)"
        ended = subprocess.run(
            [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, timeout=30, check=False
        )

        assert (0, True) == (ended.returncode, ended.stdout.startswith("http://127.0.0.1:"))
        assert "was never stopped" in ended.stderr

    def test_a_wanted_port_is_taken(self):
        """
        A port may be chosen, and is free again afterwards.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with Sandbox(port) as sandbox:
            url = sandbox.url

        assert f"http://127.0.0.1:{port}" == url

    def test_a_taken_port_is_an_error(self, sandbox):
        """
        A port that is in use raises where it is asked for.
        """
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            Sandbox(int(sandbox.url.rpartition(":")[2])).start()

    def test_time_is_an_argument(self):
        """
        Times of receipt are the given clock's.
        """
        with Sandbox(clock=lambda: NOON) as sandbox:
            post(sandbox)

            assert NOON == sandbox.state()["feedback"][0]["received_at_unix_nano"]

    def test_a_missing_extra_is_named(self):
        """
        Without the extra's libraries the import says which extra to install.
        """
        code = "import sys; sys.modules['uvicorn'] = None; import otel_feedback.sandbox"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert "the sandbox needs uvicorn: pip install 'otel-feedback[sandbox]'" in ended.stderr


class TestInterface:
    def test_the_environment_points_here(self, sandbox):
        """
        Each vendor's variables name a base URL below the sandbox's, a key, and where spans belong.
        """
        environment = sandbox.environment()
        urls = {name: value for name, value in environment.items() if name.endswith("URL")}

        assert {
            "ORQ_BASE_URL": f"{sandbox.url}/orq",
            "BRAINTRUST_API_URL": f"{sandbox.url}/braintrust",
            "BRAINTRUST_BASE_URL": f"{sandbox.url}/braintrust",
            "WF_TRACE_SERVER_URL": f"{sandbox.url}/weave",
            "WANDB_BASE_URL": f"{sandbox.url}/weave",
        } == urls
        assert "project_name:sandbox" == environment["BRAINTRUST_PARENT"]
        assert {"ORQ_API_KEY", "BRAINTRUST_API_KEY", "WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT"} < set(
            environment
        )

    @pytest.mark.parametrize("compression", [Compression.Gzip, Compression.Deflate, Compression.NoCompression])
    def test_spans_come_from_the_ordinary_exporter(self, sandbox, compression):
        """
        With the given addresses and headers OpenTelemetry's own exporter sends spans to every vendor.
        """
        provider = TracerProvider()
        for endpoint in sandbox.otlp_endpoints():
            exporter = OTLPSpanExporter(endpoint.url, headers=dict(endpoint.headers), compression=compression)
            provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("test").start_as_current_span("answer"):
            pass
        provider.shutdown()

        assert [
            ("orq", "workspace", ""),
            ("braintrust", "project_name:sandbox", ""),
            ("weave", "sandbox/sandbox", "traces"),
            ("weave", "sandbox/sandbox", "agents"),
        ] == [(span["vendor"], span["project"], span["view"]) for span in sandbox.state()["spans"]]

    def test_switches_are_an_argument(self):
        """
        The switches given say how the vendors behave.
        """
        with Sandbox(switches=Switches(orq_missing_trace="refuse")) as sandbox:
            assert 404 == post(sandbox).status_code

    def test_mistargeted_compares_with_what_was_meant(self, sandbox):
        """
        Feedback on another span than the expected one is answered.
        """
        post(sandbox)

        assert ["x"] == [entry["value"] for entry in sandbox.mistargeted({"x": "00f067aa0ba902b7"})]

    def test_reset_forgets(self, sandbox):
        """
        After a reset there is no request, and no fault to come.
        """
        post(sandbox)
        sandbox.inject(Fault())
        sandbox.reset()

        assert (0, [], []) == (sandbox.state()["requests"], sandbox.requests, sandbox.state()["faults"])


class TestFaults:
    def test_a_status_comes_with_headers_and_body(self, sandbox):
        """
        A planned status is answered as planned, and nothing is stored.
        """
        sandbox.inject(Fault(status=429, headers={"Retry-After": "7"}, body="slow down"))
        answer = post(sandbox)

        assert (429, "7", "slow down") == (answer.status_code, answer.headers["retry-after"], answer.text)
        assert ([], "status") == (sandbox.state()["feedback"], sandbox.requests[0].fault)

    @pytest.mark.parametrize(("kind", "stored"), [("reset", 0), ("reset_after", 1)])
    def test_a_reset_is_one_of_tcp(self, sandbox, kind, stored):
        """
        The client sees the connection reset; whether anything was stored it cannot know.
        """
        sandbox.inject(Fault(kind=kind))
        with pytest.raises(httpx.ReadError, match="reset"):
            post(sandbox)

        assert stored == len(sandbox.state()["feedback"])
        assert [None] == [request.status for request in sandbox.requests]

    def test_a_truncated_answer_breaks_off(self, sandbox):
        """
        The answer promises more than it brings; the request was stored.
        """
        sandbox.inject(Fault(kind="truncated"))
        with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|without sending complete"):
            post(sandbox)

        assert 1 == len(sandbox.state()["feedback"])

    def test_an_answer_without_a_body_can_be_truncated(self, sandbox):
        """
        Even an answer that has no body breaks off.
        """
        sandbox.inject(Fault(kind="truncated"))
        path = f"{sandbox.url}/orq/v2/traces/{'1' * 32}/spans/{'1' * 16}/annotation"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(path, json={"annotations": [{"key": "a", "value": 1}]}, headers=AUTH["orq"])

    def test_a_slow_answer_outlasts_the_clients_patience(self, sandbox):
        """
        A client that waits less than the delay gives up, although the request was stored.
        """
        sandbox.inject(Fault(kind="slow", delay_millis=600_000))
        with pytest.raises(httpx.ReadTimeout):
            post(sandbox, timeout=0.05)

        assert 1 == len(sandbox.state()["feedback"])

    def test_a_slow_answer_comes_at_last(self, sandbox):
        """
        A client that waits longer than the delay gets its answer.
        """
        sandbox.inject(Fault(kind="slow", delay_millis=1))

        assert 200 == post(sandbox).status_code

    def test_stopping_does_not_wait_for_a_slow_answer(self):
        """
        An answer that is being delayed is given at once when the sandbox stops.
        """
        arrived = threading.Event()
        sandbox = Sandbox(clock=lambda: arrived.set() or NOON)
        sandbox.start()
        sandbox.inject(Fault(kind="slow", delay_millis=600_000))
        answers = []
        client = threading.Thread(target=lambda: answers.append(post(sandbox, timeout=30).status_code))
        client.start()
        arrived.wait()
        began = time.monotonic()
        sandbox.stop()
        client.join()

        assert [200] == answers
        assert time.monotonic() - began < 5

    def test_a_redirect_leads_elsewhere(self, sandbox):
        """
        A redirect names another address, and nothing is stored.
        """
        sandbox.inject(Fault(kind="redirect", location="http://127.0.0.1:1/x"))
        answer = post(sandbox)

        assert (307, "http://127.0.0.1:1/x") == (answer.status_code, answer.headers["location"])
        assert [] == sandbox.state()["feedback"]

    def test_a_huge_answer_is_as_long_as_it_says(self, sandbox):
        """
        A huge answer has at least the size asked for.
        """
        sandbox.inject(Fault(kind="huge", size_bytes=1_000_000))

        assert len(post(sandbox).content) >= 1_000_000

    def test_faults_come_by_http_as_well(self, sandbox):
        """
        Faults are planned and cleared at their address; what is none answers 400.
        """
        made = httpx.post(f"{sandbox.url}/faults", json={"status": 500, "times": 2})
        bad = [
            httpx.post(f"{sandbox.url}/faults", content=content).status_code
            for content in (b"{", b"[]", b'{"status": 1}', b'{"vendor": []}')
        ]
        first = post(sandbox).status_code
        cleared = httpx.delete(f"{sandbox.url}/faults")

        assert (201, 500, [400] * 4) == (made.status_code, made.json()["status"], bad)
        assert (500, 204, 200) == (first, cleared.status_code, post(sandbox).status_code)

    def test_faults_can_be_cleared(self, sandbox):
        """
        After clearing no request fails.
        """
        sandbox.inject(Fault(times=None))
        sandbox.clear_faults()

        assert 200 == post(sandbox).status_code


class TestConnection:
    def test_a_request_that_breaks_off_is_none(self, sandbox):
        """
        A client that goes away in the middle of its body leaves nothing.
        """
        host, port = sandbox.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"POST /orq/v2/feedback HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99\r\n\r\n{")
        post(sandbox)

        assert 1 == len(sandbox.requests)

    def test_a_reset_sends_rst(self):
        """
        Resetting a connection makes the other side's read fail, where closing it would end it.
        """

        async def scene():
            accepted = asyncio.get_running_loop().create_future()
            server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            theirs = await accepted
            Connection(theirs.transport).reset()
            try:
                return await reader.read()
            except ConnectionResetError:
                return "reset"
            finally:
                writer.close()
                server.close()

        assert "reset" == asyncio.run(scene())
