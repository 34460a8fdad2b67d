"""A discrete-event simulation (simpy) of pools of model servers that answer by Tandem.

A server computes passes: all rows that it has admitted read or write a token in each, and a pass takes as long as
`Speed` says.  A question goes through Tandem's calls: the intern reads, the mentor writes up to a checkpoint,
the intern reads what is new, and so on, and the intern answers.  `pool_cases` compares it with what was measured,
`pool_plan` asks it about pools that nobody has here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True)
class Speed:
    """Seconds that a pass of a server takes.

    Attributes:
        steps: Seconds of a pass in which so many rows write a token each, at some numbers of rows; linear between
            them, and beyond the last two.
        read: Seconds for each token that is read.
        reading: Seconds of a pass that reads, whatever its length; 0 where rows read and write in the same pass.
    """

    steps: tuple[tuple[int, float], ...]
    read: float
    reading: float = 0.0

    def write(self, rows: int) -> float:
        """Seconds of a pass in which `rows` rows write."""
        if len(self.steps) == 1 or rows <= self.steps[0][0]:
            return self.steps[0][1]
        spans = list(pairwise(self.steps))
        (left, low), (right, high) = next((span for span in spans if rows <= span[1][0]), spans[-1])
        return low + (high - low) * (rows - left) / (right - left)


@dataclass(frozen=True)
class Question:
    """What Tandem does with a question.

    Attributes:
        prompt: Tokens of the intern's prompt without an insight.
        mentor_prompt: Tokens of the mentor's.
        checkpoints: Tokens that the mentor has written at each checkpoint; the last one suffices.
        closing: Tokens of the intern's prompt after the insight.
        answer: Tokens that the intern answers with.
        rest: Tokens that the mentor would go on to write if it were not stopped.
        alone: Whether the intern reads the question alone before.
    """

    prompt: int
    mentor_prompt: int
    checkpoints: tuple[int, ...]
    closing: int
    answer: int
    rest: int = 0
    alone: bool = True


@dataclass(eq=False)
class Row:
    """A request at a server.

    Attributes:
        key: Questions, or conversations, with a common prefix.
        prompt: Tokens to read, of which `unread` are not cached.
        goal: Tokens to write until `reached` happens.
        limit: Tokens that it writes in all unless it is closed; it pauses at `goal` where this is None.
    """

    key: object
    prompt: int
    goal: int
    reached: simpy.Event
    limit: int | None = None
    unread: int = 0
    written: int = 0
    closed: bool = False

    @property
    def active(self) -> bool:
        """Whether the next pass has something to do for it."""
        return not self.closed and (self.unread > 0 or self.written < (self.limit or self.goal))


@dataclass
class Server:
    """A server with a prefix cache.

    Attributes:
        core: What it computes on, where servers share it.
        rows: Largest number of rows in a pass.
        cache: Tokens that its prefix cache holds.
        chunk: Largest number of tokens read in a pass.
    """

    env: simpy.Environment
    speed: Speed
    rows: int
    cache: int
    core: simpy.Resource
    chunk: int = 8192
    load: int = 0
    busy: float = 0.0
    read: int = 0
    hits: int = 0
    wrote: int = 0
    _held: int = 0
    _waiting: list[Row] = field(default_factory=list)
    _admitted: list[Row] = field(default_factory=list)
    _known: OrderedDict[object, int] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._arrival = self.env.event()
        self.env.process(self._work())

    def submit(self, row: Row) -> None:
        """Let a row join; it reads what the cache does not hold."""
        cached = min(self.known(row.key), row.prompt - 1)
        row.unread = row.prompt - cached
        self.hits += cached
        self.load += 1
        self._waiting.append(row)
        self.wake()

    def known(self, key: object) -> int:
        """Tokens of a prefix that are cached."""
        return self._known.get(key, 0)

    def wake(self) -> None:
        """Look at the rows again."""
        if not self._arrival.triggered:
            self._arrival.succeed()

    def close(self, row: Row) -> None:
        """A row leaves; what it computed stays in the cache."""
        row.closed = True
        self.load -= 1
        self._learn(row, row.prompt - row.unread + row.written)
        self._known.move_to_end(row.key)
        while self._held > self.cache and len(self._known) > 1:
            self._held -= self._known.popitem(last=False)[1]

    def _learn(self, row: Row, tokens: int) -> None:
        more = max(0, tokens - self.known(row.key))
        self._known[row.key] = self.known(row.key) + more
        self._held += more

    def _work(self) -> Steps:
        while True:
            self._admitted = [row for row in self._admitted if not row.closed]
            self._waiting = [row for row in self._waiting if not row.closed]
            places = self.rows - sum(row.active for row in self._admitted)
            joining = self._waiting[: max(0, places)]
            self._waiting = self._waiting[len(joining) :]
            self._admitted += joining
            active = [row for row in self._admitted if row.active][: self.rows]
            if not active:
                self._arrival = self.env.event()
                yield self._arrival
                continue
            with self.core.request() as turn:
                yield turn
                yield from self._pass(active)

    def _pass(self, active: Sequence[Row]) -> Steps:
        left, parts = self.chunk, list[tuple[Row, int]]()
        writing = [row for row in active if not row.unread]
        for row in active:
            if row.unread and left:
                parts.append((row, min(row.unread, left)))
                left -= parts[-1][1]
        tokens = self.chunk - left
        seconds = self.speed.write(len(writing)) if writing else 0.0
        seconds += tokens * self.speed.read + (self.speed.reading if parts else 0.0)
        if parts and not writing and not self.speed.reading:
            seconds += self.speed.write(1)
        yield self.env.timeout(seconds)
        self.busy += seconds
        self.read += tokens
        for row, count in parts:
            row.unread -= count
            self._learn(row, row.prompt - row.unread)
            self._look(row)
        for row in writing:
            row.written += 1
            self.wrote += 1
            self._look(row)

    def _look(self, row: Row) -> None:
        if not row.unread and row.written >= row.goal and not row.reached.triggered:
            row.reached.succeed()


Router = Callable[[Sequence[Server], object, Random], Server]


def least_loaded(servers: Sequence[Server], key: object, random: Random) -> Server:
    """The server with the fewest rows, whatever it has cached."""
    fewest = min(server.load for server in servers)
    return random.choice([server for server in servers if server.load == fewest])


def prefix_aware(servers: Sequence[Server], key: object, random: Random) -> Server:
    """The server that has cached the longest prefix, unless it is much busier than the others."""
    best = max(servers, key=lambda server: server.known(key))
    calm = min(server.load for server in servers) + max(4, best.rows // 4)
    return best if best.known(key) and best.load <= calm else least_loaded(servers, key, random)


@dataclass
class Tandem:
    """Tandem over two pools.

    Attributes:
        judging: Seconds of `core` that a judgement takes.
        early_stop: Whether the mentor is cancelled once its insight suffices.
        pauses: Whether the mentor waits at a checkpoint for the verdict; else it writes on meanwhile.
    """

    env: simpy.Environment
    mentors: Sequence[Server]
    interns: Sequence[Server]
    route: Router = least_loaded
    early_stop: bool = True
    pauses: bool = False
    judging: float = 0.0
    core: simpy.Resource | None = None
    random: Random = field(default_factory=lambda: Random(0))

    def answer(self, key: object, question: Question, done: Callable[[float], object]) -> Steps:
        """A process that answers a question; `done` gets its seconds."""
        started = self.env.now
        if question.alone:
            yield from self._read(key, question.prompt)
        if question.checkpoints:
            yield from self._advise(key, question)
        insight = question.checkpoints[-1] if question.checkpoints else 0
        yield from self._call(
            self.interns, key, question.prompt + insight + question.closing, question.answer
        )
        done(self.env.now - started)

    def _advise(self, key: object, question: Question) -> Steps:
        server = self.route(self.mentors, key, self.random)
        most = None if self.pauses else question.checkpoints[-1] + question.rest
        row = Row(key, question.mentor_prompt, 0, self.env.event(), most)
        submitted = False
        for count in question.checkpoints:
            row.goal, row.reached = count, self.env.event()
            if submitted:
                server.wake()
                if row.written >= count:
                    row.reached.succeed()
            else:
                server.submit(row)
                submitted = True
            yield row.reached
            yield from self._read(key, question.prompt + count)
        if self.early_stop or self.pauses:
            server.close(row)
        else:
            self.env.process(self._write_on(server, row))

    def _write_on(self, server: Server, row: Row) -> Steps:
        row.goal, row.reached = row.limit or 0, self.env.event()
        if row.written < row.goal:
            yield row.reached
        server.close(row)

    def _read(self, key: object, tokens: int) -> Steps:
        yield from self._call(self.interns, key, tokens, 0)
        yield from self._compute(self.judging)

    def _call(self, servers: Sequence[Server], key: object, prompt: int, tokens: int) -> Steps:
        server = self.route(servers, key, self.random)
        row = Row(key, prompt, tokens, self.env.event())
        server.submit(row)
        yield row.reached
        server.close(row)

    def _compute(self, seconds: float) -> Steps:
        if self.core is None:
            yield self.env.timeout(seconds)
            return
        with self.core.request() as turn:
            yield turn
            yield self.env.timeout(seconds)


def closed_loop(tandem: Tandem, questions: Sequence[Question], at_once: int) -> list[float]:
    """The seconds of each question where always `at_once` are asked; `env.now` is the end."""
    seconds, numbered = list[float](), enumerate(questions)

    def worker() -> Steps:
        for key, question in numbered:
            yield from tandem.answer(key, question, seconds.append)

    tandem.env.run(tandem.env.all_of([tandem.env.process(worker()) for _ in range(at_once)]))
    return seconds


def open_loop(
    tandem: Tandem, draw: Callable[[Random], tuple[object, Question]], rate: float, seconds: float
) -> list[float]:
    """The seconds of each question that ended in the second half of the time; they arrive at random times."""
    found, random = list[float](), Random(1)

    def done(took: float) -> None:
        if tandem.env.now >= seconds / 2:
            found.append(took)

    def arrivals() -> Steps:
        while True:
            yield tandem.env.timeout(random.expovariate(rate))
            tandem.env.process(tandem.answer(*draw(random), done))

    tandem.env.process(arrivals())
    tandem.env.run(seconds)
    return found
