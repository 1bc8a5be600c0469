"""Groups of memory streams, and their drivers, each broken in one way: leases, dead letters, ordering keys."""

from collections.abc import Sequence
from typing import Any

import attrs
from msgspec.structs import replace

import ailf
from ailf.driver import Action, Claim, Draft, Fetched, Outcome, Receipt, Settlement
from ailf_memory.state.group import GroupState
from ailf_memory.stream import MemoryStreamDriver

# --- leases and attempts -----------------------------------------------------------------------------------------


class DeliversTwice(MemoryStreamDriver):
    """The group's position doesn't move."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        known = self._state(stream).groups[group]
        known._clear()
        known.position = (0, 0)
        return fetched


class IgnoresLeases(MemoryStreamDriver):
    """A lease never ends by itself."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "lease": 1e9})

    async def extend(self, stream: str, group: str, receipts: Sequence[Receipt], *, lease: float) -> list[bool]:
        return await super().extend(stream, group, receipts, lease=1e9)


class LeasesNothing(MemoryStreamDriver):
    """A message is for anybody again as soon as it was delivered."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "lease": 0.0})


class SettlesStale(GroupState):
    """Whoever once had a message may settle it."""

    def mine(self, receipt: Receipt, now_ms: int) -> Any:
        return self.pending.get(receipt.id)


class SettlesTogether(MemoryStreamDriver):
    """A lease that one request settles twice holds both times."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        last = {each.receipt: each for each in settlements}
        outcomes = dict(zip(last, await super().settle(stream, group, list(last.values()), **options), strict=True))
        return [outcomes[each.receipt] for each in settlements]


class RepeatsGrants(GroupState):
    """A lease is numbered by its attempt, which begins anew after a seek."""

    def _claim(self, name: str, consumer: str, until_ms: int) -> Claim:
        claim = super()._claim(name, consumer, until_ms)
        self.pending[name].grant = claim.attempt
        return replace(claim, receipt=replace(claim.receipt, grant=claim.attempt))


class CountsReleases(GroupState):
    """A release counts as an attempt."""

    def release(self, name: str, due_ms: int, now_ms: int) -> None:
        self.park(name, due_ms, now_ms)


class ReleasesAtOnce(GroupState):
    """The delay of a release is ignored."""

    def release(self, name: str, due_ms: int, now_ms: int) -> None:
        super().release(name, now_ms, now_ms)


class AcksOnNack(MemoryStreamDriver):
    """A nack loses the message."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        changed = [replace(each, action=Action.ACK) if each.action is Action.NACK else each for each in settlements]
        return await super().settle(stream, group, changed, **options)


class NacksAtOnce(MemoryStreamDriver):
    """A nack's delay is forgotten."""

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **options: Any) -> list[Outcome]:
        return await super().settle(stream, group, [replace(each, delay=0.0) for each in settlements], **options)


class TriesForEver(MemoryStreamDriver):
    """No number of deliveries is too many."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return await super().fetch(stream, group, consumer, **{**options, "max_deliveries": 10**9})

    async def settle(self, stream: str, group: str, settlements: Sequence[Settlement], **_: Any) -> list[Outcome]:
        return await super().settle(stream, group, settlements, max_deliveries=10**9)


class HoldsUpOthers(GroupState):
    """What is for later holds up what is behind it."""

    def _admit(self, name: str, out: Any, now_ms: int) -> bool:
        held_up = max([out.terms.at_ms, *(each.terms.at_ms for each in self.pending.values())])
        return super()._admit(name, attrs.evolve(out, terms=attrs.evolve(out.terms, at_ms=held_up)), now_ms)


class CountsParking(GroupState):
    """Taking in what is for later is its first attempt."""

    def schedule(self, name: str, due_ms: int) -> None:
        out = self.pending[name]
        if due_ms == out.terms.at_ms:
            out.attempts += 1
        super().schedule(name, due_ms)


# --- dead letters ------------------------------------------------------------------------------------------------


class StumblesOverProblems(MemoryStreamDriver):
    """A fetch fails with the first entry that can't be read."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        if problems := [each.record.problem for each in fetched.claims if each.record.problem]:
            raise ailf.BackendError(problems[0])
        return fetched


class IgnoresProblems(MemoryStreamDriver):
    """An entry that can't be read is handed out as though it could."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        fetched = await super().fetch(stream, group, consumer, **options)
        claims = [replace(each, record=replace(each.record, problem="")) for each in fetched.claims]
        return replace(fetched, claims=claims)


class LosesDeadLetters(GroupState):
    """What a group gives up on is gone."""

    def bury(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        self.finish(name, now_ms)
        return Outcome.DEAD


class ForgetsErrors(GroupState):
    """A dead letter doesn't say what went wrong."""

    def bury(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        return super().bury(name, reason, "", now_ms)


class HidesDeaths(MemoryStreamDriver):
    """Nobody is told what a fetch has buried."""

    async def fetch(self, stream: str, group: str, consumer: str, **options: Any) -> Fetched:
        return replace(await super().fetch(stream, group, consumer, **options), dead=())


class CountsOn(GroupState):
    """A message that is redriven goes on with its attempts."""

    def take_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        before, letter = set(self.pending), self.dead.get(number)
        taken = super().take_letter(number, now_ms, redrive=redrive)
        for name in set(self.pending) - before:
            self.pending[name].attempts = letter.shown.attempts if letter else 0
        return taken


class RedrivesTwice(GroupState):
    """A letter is redriven by each who asks."""

    def take_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        letter = self.dead.get(number)
        taken = super().take_letter(number, now_ms, redrive=redrive)
        if letter is not None and redrive:
            self.dead[number] = letter
        return taken


class PurgesNothing(GroupState):
    """Purging puts back."""

    def take_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        return super().take_letter(number, now_ms, redrive=True)


class RedrivesToAll(MemoryStreamDriver):
    """A letter is redriven by adding it to the stream again, for every group."""

    async def take_dead_letters(self, stream: str, group: str, letters: Sequence[str], *, redrive: bool) -> list[bool]:
        known = self._group(stream, group)
        bodies = {str(number): letter.record.body for number, letter in known.dead.items()} if known else {}
        taken = await super().take_dead_letters(stream, group, letters, redrive=False)
        await self.add(stream, [Draft(bodies[each]) for each in letters if redrive and each in bodies], retention=None)
        return taken


class NeedsTheEntry(GroupState):
    """A letter can't be redriven when its entry is gone."""

    def take_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        letter = self.dead.get(number)
        here = {record.id for record in self.entries.records}
        return letter is None or (letter.record.id in here and super().take_letter(number, now_ms, redrive=redrive))


# --- ordering keys -----------------------------------------------------------------------------------------------


class PassesTurns(GroupState):
    """Whatever comes back gives its turn to the next of its key."""

    def park(self, name: str, due_ms: int, now_ms: int) -> None:
        super().park(name, due_ms, now_ms)
        lane = self._lanes.get(self.pending[name].terms.key)
        for queued in lane.queued if lane else ():
            self.schedule(queued, now_ms)


class KeepsTurns(GroupState):
    """Whose message is a dead letter keeps the turn of its key."""

    def bury(self, name: str, reason: str, error: str, now_ms: int) -> Outcome:
        lane = self._lanes.get(self.pending[name].terms.key)
        if lane is not None:
            lane.turn = "nobody"
        return super().bury(name, reason, error, now_ms)


class RedrivesFirst(GroupState):
    """What is redriven goes before all others of its key."""

    def take_letter(self, number: int, now_ms: int, *, redrive: bool) -> bool:
        taken = super().take_letter(number, now_ms, redrive=redrive)
        for lane in self._lanes.values():
            lane.queued.extendleft(lane.again)
            lane.again.clear()
        return taken
