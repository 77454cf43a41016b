"""Each kind of function, driven in each way that Python allows, compared with the same function uncaptured."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from capture_kinds import KINDS, Kind
from capture_world import (
    AWAITING_PLACES,
    CALL,
    PLACES,
    VARIABLE,
    Awaiting,
    BrokenError,
    IgnoredError,
    Ledgers,
    World,
    compare,
    eventually,
    here,
    watching,
)
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of

Place = Callable[[Callable[[], Any]], None]
# What a call returned, and nothing else that holds it.
Box = list[Any]
NewWorld = Callable[[str, Kind, bool], World]


# --- drives, step by step ----------------------------------------------------------------------------------------


def step(world: World, place: Place, function: Callable[..., Any], *args: Any) -> bool:
    """Take a step at a place."""
    place(lambda: world.step(function, *args))
    return world.has_more


def exhaust(world: World, box: Box, place: Place) -> None:
    while step(world, place, next, box[0]):
        pass


def exhausted(world: World, box: Box, place: Place) -> None:
    exhaust(world, box, place)
    step(world, place, next, box[0])


def looped_over(world: World, box: Box, place: Place) -> None:
    step(world, place, list, box[0])


def teed(world: World, box: Box, place: Place) -> None:
    branches = itertools.tee(box[0])
    while sum(step(world, place, next, branch) for branch in branches):
        pass


def dropped(world: World, box: Box, place: Place) -> None:
    step(world, place, next, box[0])
    step(world, place, next, box[0])
    step(world, place, box.clear)


def dropped_in_a_cycle(world: World, box: Box, place: Place) -> None:
    step(world, place, next, box[0])
    cycle = [box.pop()]
    cycle.append(cycle)
    del cycle
    place(gc.collect)


def dropped_unstarted(world: World, box: Box, place: Place) -> None:
    step(world, place, box.clear)


def closed(world: World, box: Box, place: Place) -> None:
    step(world, place, next, box[0])
    step(world, place, next, box[0])
    step(world, place, box[0].close)
    step(world, place, next, box[0])


def closed_unstarted(world: World, box: Box, place: Place) -> None:
    step(world, place, box[0].close)
    step(world, place, box[0].close)


def closed_by_closing(world: World, box: Box, place: Place) -> None:
    with closing(box[0]) as stream:
        world.note("is itself", stream is box[0])
        step(world, place, next, stream)


def closed_at_the_end(world: World, box: Box, place: Place) -> None:
    exhaust(world, box, place)
    step(world, place, box[0].close)


def sent_to(world: World, box: Box, place: Place) -> None:
    step(world, place, box[0].send, "too early")
    step(world, place, next, box[0])
    for number in itertools.count():
        if not step(world, place, box[0].send, number):
            break


def thrown_into(world: World, box: Box, place: Place) -> None:
    step(world, place, next, box[0])
    step(world, place, next, box[0])
    step(world, place, box[0].throw, BrokenError("thrown"))
    step(world, place, next, box[0])


def thrown_into_unstarted(world: World, box: Box, place: Place) -> None:
    step(world, place, box[0].throw, BrokenError("thrown"))


def thrown_into_and_ignored(world: World, box: Box, place: Place) -> None:
    for _ in range(3):
        step(world, place, next, box[0])
    step(world, place, box[0].throw, IgnoredError("ignored"))
    exhaust(world, box, place)


def told_to_exit(world: World, box: Box, place: Place) -> None:
    step(world, place, next, box[0])
    step(world, place, box[0].throw, GeneratorExit())


def delegated_to(world: World, box: Box, place: Place) -> None:
    def around() -> Any:
        world.note("result", (yield from box[0]))

    outer = around()
    exhaust(world, [outer], place)


def delegated_to_and_thrown_into(world: World, box: Box, place: Place) -> None:
    def around() -> Any:
        yield from box[0]

    thrown_into(world, [around()], place)


def left_by_with(world: World, box: Box, place: Place) -> None:
    with box[0] as stream:
        world.note("is itself", stream is box[0])
        world.look_at(stream)
        world.ask(stream)
        step(world, place, next, stream)


def exhausted_in_with(world: World, box: Box, place: Place) -> None:
    with box[0] as stream:
        exhaust(world, [stream], place)


def left_by_a_failing_with(world: World, box: Box, place: Place) -> None:
    with suppress(BrokenError), box[0] as stream:
        step(world, place, next, stream)
        raise BrokenError("outside")


def entered_and_left_elsewhere(world: World, box: Box, place: Place) -> None:
    entered: Box = []
    place(lambda: (VARIABLE.set("enters"), entered.append(box[0].__enter__())))
    exhaust(world, entered, place)
    place(lambda: box[0].__exit__(None, None, None))


def called(world: World, box: Box, place: Place) -> None:
    step(world, place, box[0])


# --- drives of what is asynchronous ------------------------------------------------------------------------------


async def astep(world: World, place: Awaiting, function: Callable[..., Awaitable[Any]], *args: Any) -> bool:
    """Take a step at a place."""
    await place(lambda: world.astep(function, *args))
    return world.has_more


async def turns() -> None:
    """Give the event loop the turns that it needs to close what was collected."""
    for _ in range(10):
        await asyncio.sleep(0)


async def aexhaust(world: World, box: Box, place: Awaiting) -> None:
    while await astep(world, place, anext, box[0]):
        pass


async def aexhausted(world: World, box: Box, place: Awaiting) -> None:
    await aexhaust(world, box, place)
    await astep(world, place, anext, box[0])


async def alooped_over(world: World, box: Box, place: Awaiting) -> None:
    async def loop() -> list[Any]:
        return [item async for item in box[0]]

    await astep(world, place, loop)


async def aexhausted_by_default(world: World, box: Box, place: Awaiting) -> None:
    async def has_next() -> bool:
        item = await anext(box[0], None)
        world.note("item or default", item)
        return item is not None

    more: list[bool] = [True]

    async def loop() -> None:
        more.append(await has_next())

    while more[-1]:
        await astep(world, place, loop)


async def adropped(world: World, box: Box, place: Awaiting) -> None:
    async def drop() -> None:
        box.clear()

    await astep(world, place, anext, box[0])
    await astep(world, place, anext, box[0])
    await astep(world, place, drop)
    await turns()


async def adropped_in_a_cycle(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, anext, box[0])
    cycle = [box.pop()]
    cycle.append(cycle)
    del cycle

    async def collect() -> None:
        gc.collect()

    await place(collect)
    await turns()


async def adropped_unstarted(world: World, box: Box, place: Awaiting) -> None:
    async def drop() -> None:
        box.clear()

    await astep(world, place, drop)
    await turns()


async def adropped_last(world: World, box: Box, place: Awaiting) -> None:
    """The last thing that happens in a loop: what closes the stream is cancelled before it has begun."""
    await astep(world, place, anext, box[0])
    box.clear()


async def left_suspended(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, anext, box[0])
    await astep(world, place, anext, box[0])


async def aclosed(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, anext, box[0])
    await astep(world, place, anext, box[0])
    await astep(world, place, box[0].aclose)
    await astep(world, place, anext, box[0])


async def aclosed_unstarted(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, box[0].aclose)
    await astep(world, place, box[0].aclose)


async def aclosed_by_closing(world: World, box: Box, place: Awaiting) -> None:
    async with aclosing(box[0]) as stream:
        world.note("is itself", stream is box[0])
        await astep(world, place, anext, stream)


async def closed_awaiting(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, anext, box[0])
    await astep(world, place, box[0].close)
    await astep(world, place, anext, box[0])


async def asent_to(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, box[0].asend, "too early")
    await astep(world, place, anext, box[0])
    for number in itertools.count():
        if not await astep(world, place, box[0].asend, number):
            break


async def athrown_into(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, anext, box[0])
    await astep(world, place, anext, box[0])
    await astep(world, place, box[0].athrow, BrokenError("thrown"))
    await astep(world, place, anext, box[0])


async def athrown_into_unstarted(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, box[0].athrow, BrokenError("thrown"))


async def athrown_into_and_ignored(world: World, box: Box, place: Awaiting) -> None:
    for _ in range(3):
        await astep(world, place, anext, box[0])
    await astep(world, place, box[0].athrow, IgnoredError("ignored"))
    await aexhaust(world, box, place)


async def atold_to_exit(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, anext, box[0])
    await astep(world, place, box[0].athrow, GeneratorExit())


async def left_by_async_with(world: World, box: Box, place: Awaiting) -> None:
    async with box[0] as stream:
        world.note("is itself", stream is box[0])
        world.look_at(stream)
        world.ask(stream)
        await astep(world, place, anext, stream)


async def exhausted_in_async_with(world: World, box: Box, place: Awaiting) -> None:
    async with box[0] as stream:
        await aexhaust(world, [stream], place)


async def left_by_a_failing_async_with(world: World, box: Box, place: Awaiting) -> None:
    with suppress(BrokenError):
        async with box[0] as stream:
            await astep(world, place, anext, stream)
            raise BrokenError("outside")


async def cancelled_in_a_step(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, anext, box[0])
    await astep(world, place, anext, box[0])
    await cancel(world, world.astep(anext, box[0]))
    await astep(world, place, anext, box[0])


async def cancel(world: World, step: Awaitable[Any]) -> None:
    """Cancel a step where it waits."""
    assert world.waiting is not None
    task = asyncio.ensure_future(step)
    await world.waiting.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- drives of what is awaited -----------------------------------------------------------------------------------


async def awaited(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, box.pop)


async def awaited_by_a_task(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, lambda: asyncio.ensure_future(box.pop()))


async def gathered(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, lambda: asyncio.gather(box.pop(), asyncio.sleep(0)))


async def waited_for(world: World, box: Box, place: Awaiting) -> None:
    await astep(world, place, lambda: asyncio.wait_for(box.pop(), 60))


async def waited_for_too_long(world: World, box: Box, place: Awaiting) -> None:
    # Time enough for the few turns until the body waits: where it has not come so far, another thing is compared.
    await astep(world, place, lambda: asyncio.wait_for(box.pop(), 0.05))


async def cancelled(world: World, box: Box, place: Awaiting) -> None:
    await cancel(world, world.astep(box.pop))


# A coroutine has a context of its own for all of its steps, as a task gives it one; whoever steps is elsewhere.


def own_context(world: World) -> contextvars.Context:
    """A coroutine's own context: the call's parent is what is current there, wherever the first step is made."""
    world.starts_late = False
    return contextvars.copy_context()


def sent_by_hand(world: World, box: Box, place: Place) -> None:
    own = own_context(world)
    while step(world, place, own.run, box[0].send, None):
        pass


def thrown_by_hand(world: World, box: Box, place: Place) -> None:
    own = own_context(world)
    step(world, place, own.run, box[0].send, None)
    step(world, place, own.run, box[0].throw, BrokenError("thrown"))


def closed_by_hand(world: World, box: Box, place: Place) -> None:
    own = own_context(world)
    step(world, place, own.run, box[0].send, None)
    step(world, place, own.run, box[0].close)


def dropped_by_hand(world: World, box: Box, place: Place) -> None:
    own = own_context(world)
    step(world, place, own.run, box[0].send, None)
    step(world, place, own.run, box.clear)


def iterated_by_hand(world: World, box: Box, place: Place) -> None:
    own, awaiting = own_context(world), box[0].__await__()
    while step(world, place, own.run, next, awaiting):
        pass


# --- the table ---------------------------------------------------------------------------------------------------


def run_and_close_the_loop(main: Any) -> None:
    """Run a coroutine in a loop that is closed without ado, asynchronous generators suspended in it."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main)
    loop.close()


HIDDEN = ("where the body was", "log")


@dataclass(frozen=True, slots=True)
class Drive:
    """A way to drive a call: what the kind must be able to do, and what is to be expected of the span."""

    needs: str
    run: Callable[[World, Box, Any], Any]
    # Whether the call itself ends in an exception.
    fails: bool = False
    # Whether the span has ended when the drive is over; where only the collector ends it, a moment later.
    ends_at_once: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    # What cannot be as it should, since Python closes what the stream is made of on its own, and wherever it is.
    is_left_to_python: tuple[str, ...] = ()
    # Whether the caller's own span ends before the first step.
    outlives_its_caller: bool = False
    run_loop: Callable[[Any], None] = asyncio.run
    places: tuple[str, ...] = tuple(AWAITING_PLACES)


ONE_TASK = ("in one task", "in a new task each")
BROKEN: dict[str, Any] = {"options": {"fails": True}, "fails": True}
# To be cancelled is no failure.
WAITING: dict[str, Any] = {"options": {"waits": True}, "places": ("in one task",)}
SOON: dict[str, Any] = {"ends_at_once": False}

DRIVES: dict[str, Drive] = {
    "called": Drive("call", called),
    "called and failing": Drive("call", called, **BROKEN),
    # Iterators.
    "exhausted": Drive("next", exhausted),
    "exhausted after its caller's end": Drive("next", exhausted, outlives_its_caller=True),
    "failing": Drive("next", exhausted, **BROKEN),
    "looped over": Drive("next", looped_over),
    "teed": Drive("next", teed),
    "dropped": Drive("next", dropped, **SOON),
    "dropped after its caller's end": Drive("next", dropped, **SOON, outlives_its_caller=True),
    "dropped in a cycle": Drive("send", dropped_in_a_cycle, **SOON),
    "dropped object in a cycle": Drive("object", dropped_in_a_cycle, **SOON),
    "dropped unstarted": Drive("next", dropped_unstarted, **SOON),
    "closed": Drive("close", closed),
    "closed after its caller's end": Drive("close", closed, outlives_its_caller=True),
    "closed unstarted": Drive("close", closed_unstarted),
    "closed by closing": Drive("close", closed_by_closing),
    "closed at the end": Drive("close", closed_at_the_end),
    "sent to": Drive("send", sent_to),
    "thrown into": Drive("send", thrown_into, fails=True),
    "thrown into unstarted": Drive("send", thrown_into_unstarted, fails=True),
    "thrown into and ignored": Drive("send", thrown_into_and_ignored),
    "told to exit": Drive("send", told_to_exit),
    "delegated to": Drive("next", delegated_to),
    "delegated to and thrown into": Drive("send", delegated_to_and_thrown_into, fails=True),
    "left by with": Drive("with", left_by_with),
    "exhausted in with": Drive("with", exhausted_in_with),
    "left by a failing with": Drive("with", left_by_a_failing_with),
    "entered and left elsewhere": Drive("with", entered_and_left_elsewhere),
    "managed": Drive("manager", exhausted_in_with),
    "managed and left": Drive("manager", left_by_with),
    "managed and failing": Drive("manager", left_by_a_failing_with),
    "managed elsewhere": Drive("manager", entered_and_left_elsewhere),
    "managed by nobody": Drive("manager", dropped_unstarted, **SOON),
    # Asynchronous iterators.
    "exhausted, async": Drive("anext", aexhausted),
    "exhausted after its caller's end, async": Drive("anext", aexhausted, outlives_its_caller=True),
    "failing, async": Drive("anext", aexhausted, **BROKEN),
    "looped over, async": Drive("anext", alooped_over),
    "exhausted by default, async": Drive("anext", aexhausted_by_default),
    "dropped, async": Drive("aclose", adropped, **SOON),
    # The event loop closes it a moment later, but the collector of cycles has finalised the context managers of its
    # body by then, whose tokens are not of the context that the collector happens to be in.
    "dropped in a cycle, async": Drive("aclose", adropped_in_a_cycle, **SOON, is_left_to_python=HIDDEN),
    # Of an asynchronous generator that an object hides we never hear.
    "dropped object, async": Drive("async object", adropped, **SOON, is_left_to_python=HIDDEN),
    "dropped object in a cycle, async": Drive("async object", adropped_in_a_cycle, **SOON, is_left_to_python=HIDDEN),
    "dropped unstarted, async": Drive("anext", adropped_unstarted, **SOON),
    "dropped as its loop ends": Drive("aclose", adropped_last, **SOON, places=ONE_TASK),
    "left to its loop": Drive("aclose", left_suspended, places=ONE_TASK),
    "left in a closed loop": Drive("aclose", left_suspended, **SOON, run_loop=run_and_close_the_loop, places=ONE_TASK),
    "cancelled in a step": Drive("anext", cancelled_in_a_step, **WAITING),
    "closed, async": Drive("aclose", aclosed),
    "closed after its caller's end, async": Drive("aclose", aclosed, outlives_its_caller=True),
    "closed unstarted, async": Drive("aclose", aclosed_unstarted),
    "closed by closing, async": Drive("aclose", aclosed_by_closing),
    "closed awaiting": Drive("async close", closed_awaiting),
    "sent to, async": Drive("asend", asent_to),
    "thrown into, async": Drive("asend", athrown_into, fails=True),
    "thrown into unstarted, async": Drive("asend", athrown_into_unstarted, fails=True),
    "thrown into and ignored, async": Drive("asend", athrown_into_and_ignored),
    "told to exit, async": Drive("asend", atold_to_exit),
    "left by async with": Drive("async with", left_by_async_with),
    "exhausted in async with": Drive("async with", exhausted_in_async_with),
    "left by a failing async with": Drive("async with", left_by_a_failing_async_with),
    "managed, async": Drive("async manager", exhausted_in_async_with),
    "managed and left, async": Drive("async manager", left_by_async_with),
    "managed and failing, async": Drive("async manager", left_by_a_failing_async_with),
    "managed by nobody, async": Drive("async manager", adropped_unstarted, **SOON),
    # What is awaited.
    "awaited": Drive("await", awaited, places=ONE_TASK),
    "awaited after its caller's end": Drive("await", awaited, places=ONE_TASK, outlives_its_caller=True),
    "awaited by a task": Drive("await", awaited_by_a_task, places=ONE_TASK),
    "awaited and failing": Drive("await", awaited, places=ONE_TASK, **BROKEN),
    "gathered": Drive("await", gathered, places=ONE_TASK),
    "waited for": Drive("await", waited_for, places=ONE_TASK),
    "waited for too long": Drive("by hand", waited_for_too_long, **WAITING),
    "cancelled": Drive("by hand", cancelled, **WAITING),
    "iterated by hand": Drive("by hand", iterated_by_hand),
    "sent by hand": Drive("coroutine", sent_by_hand),
    "sent by hand and failing": Drive("coroutine", sent_by_hand, **BROKEN),
    "thrown by hand": Drive("coroutine", thrown_by_hand, fails=True),
    "closed by hand": Drive("coroutine", closed_by_hand, **SOON),
    "dropped by hand": Drive("coroutine", dropped_by_hand, **SOON),
    "dropped unawaited": Drive("started", dropped_unstarted, **SOON),
    "closed unawaited": Drive("started", closed_unstarted, **SOON),
}


# --- a run -------------------------------------------------------------------------------------------------------


@contextmanager
def caller(world: World) -> Iterator[None]:
    """A captured call around the one that is looked at."""
    with of.capture_span("caller"):
        world.caller = trace.get_current_span().get_span_context().span_id
        yield


async def run_async(world: World, kind: Kind, drive: Drive, box: Box, place: Any) -> None:
    """Make the call in an event loop, and drive it."""
    world.waiting = asyncio.Event()
    with ExitStack() as stack:
        stack.enter_context(caller(world))
        make_call(world, kind, drive, box)
        if "awaited" in kind.can:
            await world.astep(box.pop)
            box.append(world.observed.pop(-2)[1])
            world.look_at(box[0])
            world.ask(box[0])
        if drive.outlives_its_caller:
            stack.close()
        driven = drive.run(world, box, place)
        if driven is not None:
            await driven


def run_sync(world: World, kind: Kind, drive: Drive, box: Box, place: Place) -> None:
    """Make the call, and drive it."""
    with ExitStack() as stack:
        stack.enter_context(caller(world))
        make_call(world, kind, drive, box)
        if drive.outlives_its_caller:
            stack.close()
        drive.run(world, box, place)


def make_call(world: World, kind: Kind, drive: Drive, box: Box) -> None:
    """Put what a call answers into the box; where the call is all there is to drive, the call."""
    decorate = of.capture(key="message_id", name=CALL) if world.is_captured else (lambda function: function)
    function = kind.make(decorate)
    if drive.needs == "call":
        box.append(functools.partial(function, world, message_id=world.key, **drive.options))
    else:
        is_stream = not {"awaited", "await"} & kind.can
        box.append(world.call(function, is_stream=is_stream, **drive.options))


def is_awaiting(drive: Drive) -> bool:
    """Whether a drive is made of coroutines."""
    return asyncio.iscoroutinefunction(drive.run)


def run(world: World, kind: Kind, drive: Drive, place: str) -> World:
    """Drive a call of a kind at a place; answer the book of it."""
    box: Box = []
    with watching(world):
        if is_awaiting(drive):
            drive.run_loop(run_async(world, kind, drive, box, AWAITING_PLACES[place]))
        elif {"awaited"} & kind.can:
            drive.run_loop(run_async(world, kind, drive, box, PLACES[place]))
        else:
            run_sync(world, kind, drive, box, PLACES[place])
        world.ends_when_over = len(world.ledger.ends())
        box.clear()
        gc.collect()
        if world.is_captured:
            eventually(lambda: bool(world.ledger.ends()), world.provider)
            world.provider.force_flush()
    return world


@pytest.fixture
def new_world() -> Iterator[NewWorld]:
    """Worlds, each with its own ledger; their pipeline is one."""
    # Some hundred collections a second are quick only if they look at nothing older.
    gc.freeze()
    tracer_provider, ledgers = TracerProvider(shutdown_on_exit=False), Ledgers()
    tracer_provider.add_span_processor(ledgers)
    settings = of.Settings(key_wait_millis=0)
    provider = of.configure(exporters=[], store="memory:", tracer_provider=tracer_provider, settings=settings)
    tracer = tracer_provider.get_tracer("app")

    def begin(key: str, kind: Kind, is_captured: bool) -> World:
        return World(tracer, ledgers.begin(), provider, is_captured, key, starts_late="late" in kind.can)

    yield begin
    gc.unfreeze()


def judge(plain: World, captured: World, how: Drive) -> dict[str, Any]:
    """Compare two runs; answer what is wrong."""
    found = compare(plain, captured, fails=how.fails, ends_at_once=how.ends_at_once)
    return {name: pair for name, pair in found.items() if name not in how.is_left_to_python}


MATRIX = [
    pytest.param(kind, drive, id=f"{kind}: {drive}")
    for kind, drive in itertools.product(KINDS, DRIVES)
    if DRIVES[drive].needs in KINDS[kind].can
]


@pytest.mark.parametrize(("kind", "drive"), MATRIX)
def test_a_captured_call_is_driven_like_a_bare_one(kind: str, drive: str, new_world: NewWorld) -> None:
    """
    The application observes no difference, the body is in its call at every step, its caller never is between them.
    """
    how = DRIVES[drive]
    wrong = {}
    places = how.places if is_awaiting(how) else tuple(PLACES)
    for place in places if KINDS[kind].is_everywhere else places[:1]:
        plain = run(new_world(place, KINDS[kind], False), KINDS[kind], how, place)
        captured = run(new_world(place, KINDS[kind], True), KINDS[kind], how, place)
        if found := judge(plain, captured, how):
            wrong[place] = found

    assert {} == wrong
    assert (0, None) == here()
