"""Disks that are full, fail, can only be read or lose a file, at each of the first hundreds of writes.

A whole provider captures calls, records judgements and delivers them while one write, or every write from one on, goes
wrong. The application must see nothing of it but `StoreError` from what records; afterwards, without a restart, each
judgement that was accepted is delivered, and each that was refused is nowhere. The same is asked of a store alone,
which must be, after each step that it refused, what it was before.

That the harness can fail is shown by the tests at the end: they find a store that accepts what it could not store, one
that stores half of what it refuses, one that refuses everything after its first failure, and one that was deleted while
nobody had it open. Without a seeded bug it has found a look-up that denied a key which waited for the disk, a switch to
WAL whose failure nobody heard of, and a refused judgement that a reopened store read from its log after all.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal

import apsw
import pytest
from opentelemetry.sdk.trace import TracerProvider
from power_cut_vfs import BASE, ApswConnection
from store_steps import World, held_by, steps_of
from typing_extensions import override

import otel_feedback as of
from otel_feedback import Feedback, FeedbackHandle, FeedbackProvider, MemoryStore, Settings, SQLiteStore, StoreError
from otel_feedback.testing import FakeClock, InMemoryFeedbackExporter

# How many steps a fault that lasts goes on for.
LASTS_STEPS = 3
PROVIDER_STEPS = 12
STORE_STEPS = 40
# The numbers of the writes and syncs that go wrong.
PROVIDER_WRITES = range(1, 251)
STORE_WRITES = range(1, 301)
# What a flush may take while nothing can be delivered.
FLUSH_MILLIS = 100
# Longer than any lease of the engine.
LEASE_SECONDS = 600


# --- what goes wrong ---------------------------------------------------------------------------------------------


def error(code: int) -> apsw.Error:
    """Make the error that a VFS answers with a result code, the extended one if it is."""
    return apsw.exception_for(code)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a write, a sync and the opening of a file answer while it lasts; `None` is that all is well."""

    write: int | None = None
    sync: int | None = None
    can_make_files: bool = True
    # A full disk takes what still fits.
    tears: bool = False


KINDS: Mapping[str, Kind] = {
    "disk full": Kind(write=apsw.SQLITE_FULL, sync=apsw.SQLITE_IOERR_FSYNC, tears=True),
    "failing sync": Kind(sync=apsw.SQLITE_IOERR_FSYNC),
    "I/O error": Kind(write=apsw.SQLITE_IOERR_WRITE, sync=apsw.SQLITE_IOERR_FSYNC),
    "read-only": Kind(write=apsw.SQLITE_READONLY, can_make_files=False),
}
# What somebody deletes, by what the names end with.
FILES: Mapping[str, Sequence[str]] = {"the file": ("",), "all its files": ("", "-wal", "-shm")}

_numbers = itertools.count()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the file of a store is; its directory is missing.

    It is in memory where the system has such files: what fails here is simulated, and waiting for a disk thousands of
    times, and leaving 1 MiB of ballast each time, would only take long.
    """
    memory = Path("/dev/shm")  # noqa: S108 (the directory in it has a name of its own)
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory) / "made" / "feedback.db"


class FaultyVFS(apsw.VFS):
    """Counts writes and syncs, and lets the one of a number go wrong.

    Args:
        at: from which number on the first one goes wrong that the kind concerns; 0 is never.

        kind: what goes wrong.

        lasts: whether all that follow go wrong too, until `clear`.

        deletes: the files that are deleted before that write instead.
    """

    def __init__(self, at: int = 0, kind: Kind = Kind(), *, lasts: bool = False, deletes: Sequence[Path] = ()) -> None:
        self.vfs_name = f"faulty-{next(_numbers)}"
        super().__init__(self.vfs_name, BASE)
        self.count = 0
        self.has_struck = threading.Event()
        self._at, self._kind, self._lasts, self._deletes = at, kind, lasts, deletes
        self._is_failing = False
        self._lock = threading.Lock()

    def connect(self, path: str | Path, *, timeout: float = 5.0, **_: object) -> ApswConnection:
        """Connect as `sqlite3.connect` does."""
        return ApswConnection(path, self.vfs_name, timeout=timeout)

    def clear(self) -> None:
        """Let all be well again."""
        self._is_failing = False

    def delete(self, files: Sequence[Path]) -> None:
        """Delete files behind the store's back."""
        for path in files:
            path.unlink(missing_ok=True)
        self.has_struck.set()

    @override
    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if self._is_failing and not self._kind.can_make_files and path is not None:
            if not Path(path).exists():
                raise error(apsw.SQLITE_CANTOPEN)
            changed = (flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)) | apsw.SQLITE_OPEN_READONLY
            flags[0] = changed
        return _FaultyFile(self, name, flags)

    @override
    def xDelete(self, name: str, syncs_directory: bool) -> None:
        if self._is_failing and not self._kind.can_make_files:
            raise error(apsw.SQLITE_IOERR_DELETE)
        super().xDelete(name, False)

    def goes_wrong(self, what: Literal["write", "sync"]) -> int | None:
        """Count a write or a sync; answer the result code with which it fails, if it does."""
        code: int | None = getattr(self._kind, what)
        with self._lock:
            self.count += 1
            has_come = bool(self._at) and self.count >= self._at and not self.has_struck.is_set()
            if has_come and (code is not None or self._deletes):
                self._is_failing = self._lasts
                self.delete(self._deletes)
                return code
            return code if self._is_failing else None

    @property
    def tears(self) -> bool:
        """Whether half of a failing write gets through."""
        return self._kind.tears

    def excepthook(self, *args: object) -> None:
        """Say nothing of our own errors where SQLite does not pass them on, as when it closes a file."""


class _FaultyFile(apsw.VFSFile):
    """One open file."""

    def __init__(self, vfs: FaultyVFS, name: Any, flags: list[int]) -> None:
        super().__init__(BASE, name, flags)
        self._vfs = vfs

    @override
    def xWrite(self, data: bytes, offset: int) -> None:
        code = self._vfs.goes_wrong("write")
        if code is not None:
            if self._vfs.tears:
                super().xWrite(data[: len(data) // 2], offset)
            raise error(code)
        super().xWrite(data, offset)

    @override
    def xSync(self, flags: int) -> None:
        code = self._vfs.goes_wrong("sync")
        if code is not None:
            raise error(code)

    def excepthook(self, *args: object) -> None:
        """As the VFS's."""


@contextmanager
def a_disk(*args: Any, **options: Any) -> Iterator[FaultyVFS]:
    """Make a VFS, and forget it afterwards."""
    vfs = FaultyVFS(*args, **options)
    try:
        yield vfs
    finally:
        vfs.unregister()


class Progress:
    """Tells, step by step, whether a fault is over."""

    def __init__(self, vfs: FaultyVFS) -> None:
        self._vfs = vfs
        self._struck_at: int | None = None

    def is_over(self, step: int) -> bool:
        """Look before each step; a fault that lasts is ended here, a few steps after it began."""
        if self._struck_at is None and self._vfs.has_struck.is_set():
            self._struck_at = step
        if self._struck_at is None or step < self._struck_at + LASTS_STEPS:
            return False
        self._vfs.clear()
        return True


def is_in_wal_mode(path: Path) -> bool:
    """Read it from the file's header (https://www.sqlite.org/fileformat2.html#file_format_version_numbers)."""
    return path.read_bytes()[18:20] == b"\x02\x02"


class StandingClock(FakeClock):
    """A time of day that stands still while the monotonic clock goes, so that whoever waits does not wait for ever."""

    def monotonic_nano(self) -> int:
        return time.monotonic_ns()


# --- a store alone -----------------------------------------------------------------------------------------------


def step_through(
    path: Path,
    vfs: FaultyVFS,
    *,
    seed: int = 1,
    make: Callable[..., SQLiteStore] = SQLiteStore,
    before: Callable[[int, World], object] = lambda number, world: None,
) -> None:
    """Do the steps of a seed; after each one that is refused the store must be as it was."""
    disk_clock, memory_clock, progress = StandingClock(), FakeClock(), Progress(vfs)
    disk = World(make(path, clock=disk_clock, connect=vfs.connect), disk_clock)
    memory = World(MemoryStore(clock=memory_clock), memory_clock)
    with closing(disk.store):
        for number, step in enumerate(steps_of(Random(seed), STORE_STEPS)):
            before(number, disk)
            is_over = progress.is_over(number)
            try:
                step(disk)
            except StoreError:
                assert not is_over, "the store goes on when all is well again"
                with suppress(StoreError):  # one that cannot even be opened shows nothing
                    assert held_by(memory.store) == held_by(disk.store)
            else:
                step(memory)
        vfs.clear()
        expected = held_by(memory.store)
        assert expected == held_by(disk.store)
    assert is_in_wal_mode(path)
    with closing(SQLiteStore(path, clock=FakeClock())) as fresh:
        assert expected == held_by(fresh)


# --- a whole provider --------------------------------------------------------------------------------------------


class AdvancingClock:
    """The system's time, which may be set forward, so that leases run out."""

    def __init__(self) -> None:
        self._ahead = 0

    def time_unix_nano(self) -> int:
        return time.time_ns() + self._ahead

    def monotonic_nano(self) -> int:
        return time.monotonic_ns() + self._ahead

    def advance(self, *, seconds: int) -> None:
        self._ahead += seconds * 1_000_000_000


@dataclass(slots=True)
class App:
    """An application that captures calls and records judgements, and what it was told of them."""

    store: Any
    clock: AdvancingClock
    exporter: InMemoryFeedbackExporter = field(default_factory=InMemoryFeedbackExporter)
    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    called: dict[str, str] = field(default_factory=dict)
    provider: FeedbackProvider = field(init=False)

    def __post_init__(self) -> None:
        self.provider = FeedbackProvider(
            exporters=[self.exporter],
            store=self.store,
            tracer_provider=TracerProvider(shutdown_on_exit=False),
            settings=Settings(key_wait_millis=0),
            clock=self.clock,
        )

    def step(self, number: int) -> None:
        """Answer a question, name the call a second time, and judge it by its key and by its handle."""
        handle = self._call(f"m-{number}", f"answer {number}")
        self.provider.bind_key(handle, f"also-{number}")
        self.called |= dict.fromkeys((f"m-{number}", f"also-{number}"), handle.span_id)
        self._judge(Feedback(key=f"m-{number}", name="rating", value=True, comment=f"{number} by key"))
        self._judge(
            *[
                Feedback(target=handle, name="rating", value=False, comment=f"{number} by handle, {each}")
                for each in range(2)
            ]
        )
        if number % 3 == 2:
            with suppress(StoreError):
                self.provider.force_flush(FLUSH_MILLIS)

    def settle_down(self) -> None:
        """Let every lease run out until nothing waits; all is well by now."""
        for _ in range(20):
            self.provider.force_flush(1_000)
            if self.provider.stats()["memory"].pending == 0:
                return
            self.clock.advance(seconds=LEASE_SECONDS)

    def _call(self, key: str, answer: str) -> FeedbackHandle:
        handles = []

        @of.capture(key="message_id")
        def chat(message_id: str) -> str:
            handles.append(of.current_handle())
            return answer

        assert answer == chat(key)
        return handles[0]

    def _judge(self, *feedback: Feedback) -> None:
        comments = [str(each.comment) for each in feedback]
        try:
            self.provider.record_many(feedback)
        except StoreError:
            self.refused += comments
        else:
            self.accepted += comments


@contextmanager
def an_app(make: Callable[..., SQLiteStore], path: Path, vfs: FaultyVFS) -> Iterator[App]:
    """Run an application, whose provider is the current one."""
    clock = AdvancingClock()
    app = App(make(path, clock=clock, connect=vfs.connect), clock)
    of.set_feedback_provider(app.provider)
    try:
        yield app
    finally:
        vfs.clear()
        app.provider.shutdown()
        of.set_feedback_provider(None)


def use(
    path: Path,
    vfs: FaultyVFS,
    *,
    make: Callable[..., SQLiteStore] = SQLiteStore,
    before: Callable[[int], object] = lambda number: None,
) -> None:
    """Let an application go through a fault and on after it, and hold it to its account."""
    progress = Progress(vfs)
    with an_app(make, path, vfs) as app:
        for number in range(PROVIDER_STEPS):
            before(number)
            refused, is_over = len(app.refused), progress.is_over(number)
            app.step(number)
            assert not (is_over and app.refused[refused:]), "the application goes on when all is well again"
        vfs.clear()
        app.settle_down()
        check_account(app, app.provider.stats())
        assert app.called == {key: app.provider.handle_for_key(key).span_id for key in app.called}
    assert is_in_wal_mode(path)
    with closing(SQLiteStore(path)) as fresh:
        check_account(app, fresh.stats())
        assert {"delivered"} == {fresh.status(each.id)["memory"].state for each in app.exporter.records}


def check_account(app: App, stats: Mapping[str, Any]) -> None:
    """Hold the books against what the application was told, and against what has arrived."""
    assert 3 * PROVIDER_STEPS == len(app.accepted) + len(app.refused)
    assert set(app.accepted) == {str(record.comment) for record in app.exporter.records}
    account = stats["memory"]
    assert (len(app.accepted), len(app.accepted), 0) == (account.recorded, account.delivered, account.pending)
    assert account.is_conserved


# --- faults ------------------------------------------------------------------------------------------------------


def positions(short: range, long: range) -> list[Any]:
    """Name some writes for the normal run, and all of them for the long one."""
    return [*short, *(pytest.param(at, marks=pytest.mark.chaos) for at in long if at not in short)]


def test_the_runs_are_long_enough(path: Path) -> None:
    """
    Without a fault nothing is refused, and there are more writes and syncs than are made to fail below.
    """
    with a_disk() as disk:
        step_through(path, disk)
        alone = disk.count
    with a_disk() as disk:
        use(path.with_name("used.db"), disk)

        assert (True, True) == (alone > STORE_WRITES[-1], disk.count > PROVIDER_WRITES[-1])


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "for a while"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", positions(PROVIDER_WRITES[::61], PROVIDER_WRITES))
def test_an_application_outlives_a_disk_that_fails(path: Path, at: int, kind: str, lasts: bool) -> None:
    """
    Captured calls see nothing, a judgement is accepted or refused by `StoreError`, and what was accepted is delivered.
    """
    with a_disk(at, KINDS[kind], lasts=lasts) as disk:
        use(path, disk)

        assert disk.has_struck.is_set()


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "for a while"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", positions(STORE_WRITES[::61], STORE_WRITES))
def test_a_step_that_is_refused_leaves_the_store_as_it_was(path: Path, at: int, kind: str, lasts: bool) -> None:
    """
    Whatever the step is: keys, records, leases, settlements and parked judgements are those of before.
    """
    with a_disk(at, KINDS[kind], lasts=lasts) as disk:
        step_through(path, disk)

        assert disk.has_struck.is_set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_accepts_is_in_wal_mode_whatever_failed_while_it_was_made(path: Path, kind: str) -> None:
    """
    A rollback journal's end is not synced with `synchronous=FULL`: without WAL a power cut would take back a commit.
    """
    modes = set()
    for at in STORE_WRITES[:50]:
        made = path.with_name(f"{at}.db")
        with a_disk(at, KINDS[kind]) as disk, closing(SQLiteStore(made, connect=disk.connect)) as store:
            with suppress(StoreError):
                store.open()
            store.bind([])
            modes.add(is_in_wal_mode(made))

    assert {True} == modes


# --- deleted files -----------------------------------------------------------------------------------------------
# All of these fail on a store that does not look whether its file is still there, as that of cf79d55.


def files(path: Path, which: str) -> list[Path]:
    return [path.with_name(path.name + end) for end in FILES[which]]


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("at", positions(PROVIDER_WRITES[::61], PROVIDER_WRITES[::7]))
def test_an_application_outlives_the_deletion_of_its_store_in_the_middle_of_a_write(
    path: Path, at: int, which: str
) -> None:
    """
    What was accepted before and after is delivered, and is in the file that is there in the end.
    """
    with a_disk(at, deletes=files(path, which)) as disk:
        use(path, disk)

        assert disk.has_struck.is_set()


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("step", [1, 6, PROVIDER_STEPS - 1])
def test_an_application_outlives_the_deletion_of_its_store_between_two_judgements(
    path: Path, step: int, which: str
) -> None:
    """
    The same where nothing of this process is going on but what delivers.
    """
    with a_disk() as disk:
        use(path, disk, before=lambda number: number == step and disk.delete(files(path, which)))

        assert disk.has_struck.is_set()


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("at", positions(STORE_WRITES[::61], STORE_WRITES[::3]))
def test_a_store_whose_file_is_deleted_in_the_middle_of_a_write_loses_nothing(path: Path, at: int, which: str) -> None:
    """
    Each step is done as if nothing had happened, or refused and not done.
    """
    with a_disk(at, deletes=files(path, which)) as disk:
        step_through(path, disk)

        assert disk.has_struck.is_set()


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("step", positions(range(1, STORE_STEPS + 1, 9), range(1, STORE_STEPS + 1)))
def test_a_store_whose_file_is_deleted_between_two_steps_loses_nothing(path: Path, step: int, which: str) -> None:
    """
    The same between steps, closing included.
    """
    with a_disk() as disk:
        step_through(path, disk, before=lambda number, _: number == step and disk.delete(files(path, which)))

        assert disk.has_struck.is_set()


# --- the harness can fail ----------------------------------------------------------------------------------------


class SwallowingStore(SQLiteStore):
    """A seeded bug: what cannot be stored is accepted."""

    def put_many(self, entries: Sequence[Any]) -> None:
        with suppress(StoreError):
            super().put_many(entries)


class HalvingStore(SQLiteStore):
    """A seeded bug: several records are stored one by one, so that some of what is refused is there."""

    def put_many(self, entries: Sequence[Any]) -> None:
        for entry in entries:
            super().put_many([entry])


class OffendedStore(SQLiteStore):
    """A seeded bug: after one failure every judgement is refused."""

    offence: StoreError | None = None

    def put_many(self, entries: Sequence[Any]) -> None:
        if self.offence is not None:
            raise self.offence
        try:
            super().put_many(entries)
        except StoreError as error:
            self.offence = error
            raise


# In which run each is seen for certain: what is halved depends on the thread that delivers, so that is asked of the
# store alone.
@pytest.mark.parametrize(
    ("make", "run"),
    [
        (SwallowingStore, step_through),
        (SwallowingStore, use),
        (HalvingStore, step_through),
        (OffendedStore, step_through),
        (OffendedStore, use),
    ],
)
def test_a_store_that_does_not_mean_what_it_says_is_caught(
    path: Path, make: type[SQLiteStore], run: Callable[..., None]
) -> None:
    """
    Each seeded bug fails the run at some of the writes.
    """
    caught = 0
    for at in range(60, 300, 20):
        with a_disk(at, KINDS["disk full"], lasts=True) as disk:
            try:
                run(path.with_name(f"{at}.db"), disk, make=make)
            except AssertionError:
                caught += 1

    assert caught > 0


def test_a_store_that_is_deleted_while_it_is_closed_is_found_missing(path: Path) -> None:
    """
    What nobody has open is gone with its file, and the run says so.
    """

    def delete(number: int, world: World) -> None:
        if number == 20:
            world.store.close()
            disk.delete(files(path, "all its files"))

    with a_disk() as disk, pytest.raises(AssertionError):
        step_through(path, disk, before=delete)
