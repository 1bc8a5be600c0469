"""The contract suite catches backends that are broken on purpose, and passes on those that aren't."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ailf
from contract_tests.backend import test_backend as b
from contract_tests.backend import test_cancel as x
from contract_tests.backend import test_close as c
from contract_tests.fixtures import clauses
from contract_tests.harness import Harness
from contract_tests.lock import test_lock as lk
from contract_tests.lock import test_lock_hold as lh
from contract_tests.lock import test_lock_waiting as lw
from contract_tests.pubsub import test_pubsub as p
from contract_tests.pubsub import test_request as q
from contract_tests.ratelimit import test_ratelimit as rl
from contract_tests.ratelimit import test_ratelimit_waiting as rw
from contract_tests.stream import test_dead_letters as dl
from contract_tests.stream import test_delivery as d
from contract_tests.stream import test_events as e
from contract_tests.stream import test_info as i
from contract_tests.stream import test_ordering as o
from contract_tests.stream import test_positions as st
from contract_tests.stream import test_retention as r
from contract_tests.stream import test_scheduling as t
from contract_tests.stream import test_stream as s
from contract_tests.stream import test_takeover as lv
from contract_tests.world import World, live
from tests.contract.planted import base as broken
from tests.contract.planted import consumers as members
from tests.contract.planted import groups, limiters, locks, requests, streams
from tests.contract.planted import wait_queues as lines
from tests.contract.planted.base import (
    BrokenHarness,
    with_backend,
    with_driver,
    with_group,
    with_listener,
    with_pubsub,
    with_stream,
)
from tests.contract.planted.limiters import with_limiter
from tests.contract.planted.locks import with_lock
from tests.contract.test_clauses import covered
from tests.support.effort import TRIES

Test = Callable[..., Coroutine[Any, Any, None]]

WAITS = {"retention": "settled", "state": "scheduled"}
SMALLER = dict(zip(("large", "small", "longest"), rl.MADE_SMALLER[0], strict=True))

BROKEN: list[tuple[type[BrokenHarness], Test, dict[str, Any]]] = [
    (with_driver(broken.LeavesThreads), c.test_close_leaves_nothing, {}),
    (with_driver(broken.IsForgottenSilently), c.test_dropped, {}),
    (with_driver(broken.IsNotGivenBack), c.test_dropped, {}),
    (broken.WaitsForEver, b.test_a_silent_backend, {}),
    (broken.SharesNamespaces, b.test_same_url_same_things, {}),
    (broken.SharesNothing, b.test_same_url_same_things, {}),
    (with_backend(broken.SharesObjects, broken.AsyncSharesObjects), b.test_payloads_are_copies, {}),
    (with_stream(streams.SharesNames), b.test_names, {}),
    (with_stream(streams.SharesGroups), b.test_pairs_of_names, {}),
    (with_stream(streams.ForgetsHeaders), b.test_largest, {}),
    (with_stream(streams.CutsBodies), b.test_largest, {}),
    (with_stream(streams.LosesMessages), s.test_readable_on_return, {}),
    (with_stream(groups.DeliversTwice), d.test_one_lease_at_a_time, {}),
    (with_stream(groups.DeliversTwice), s.test_many_producers, {}),
    (with_stream(groups.LeasesNothing), d.test_one_lease_at_a_time, {}),
    (with_stream(groups.IgnoresLeases), d.test_expired_leases_come_back, {}),
    (with_group(groups.SettlesStale), d.test_fenced_settles, {}),
    (with_stream(streams.RevivesLeases), d.test_fenced_settles, {}),
    (with_stream(streams.NeverExtends), d.test_extend, {}),
    (with_stream(streams.NeverExtends), d.test_leases_are_renewed, {}),
    (with_group(groups.CountsReleases), d.test_attempts, {}),
    (with_group(groups.ReleasesAtOnce), d.test_a_release_with_a_delay, {}),
    (with_group(groups.CountsReleases), d.test_a_release_with_a_delay, {}),
    (with_stream(groups.AcksOnNack), d.test_attempts, {}),
    (with_stream(groups.NacksAtOnce), d.test_nack_delays, {}),
    (with_stream(groups.TriesForEver), d.test_dead_letters, {"way": "nack"}),
    (with_stream(groups.TriesForEver), d.test_dead_letters, {"way": "expire"}),
    (with_group(groups.LosesDeadLetters), d.test_dead_letters, {"way": "reject"}),
    (with_group(groups.LosesDeadLetters), s.test_undecodable, {}),
    (with_stream(groups.StumblesOverProblems), s.test_broken_entries, {}),
    (with_stream(groups.IgnoresProblems), s.test_broken_entries, {}),
    (with_group(groups.ForgetsErrors), d.test_dead_letters, {"way": "nack"}),
    (with_stream(streams.RingsNobody), d.test_what_comes_back_wakes_others, {}),
    (with_stream(members.DropsOnLeave), c.test_close_gives_back, {}),
    (with_stream(members.DropsOnLeave), s.test_leaving_drops_nothing, {}),
    (with_stream(members.KeepsOnLeave), c.test_close_gives_back, {}),
    (with_stream(streams.NeverCloses), c.test_close_wakes_everybody, {}),
    (with_stream(streams.ClosesLate), c.test_consuming_ends_promptly, {"way": "backend"}),
    (with_stream(streams.ClosesLate), c.test_consuming_ends_promptly, {"way": "process"}),
    (with_stream(members.MovesGroups), s.test_group_starts, {}),
    (with_stream(members.StartsLate), s.test_group_starts, {}),
    (with_stream(members.KeepsGroupsSilently), s.test_a_vanished_group_is_made_again, {}),
    (with_stream(members.TellsResetsTwice), e.test_a_reset_is_told_once, {}),
    (with_stream(groups.HidesDeaths), e.test_dead_letters_are_told, {}),
    (with_stream(streams.SharesGroups), s.test_groups_are_apart, {}),
    (with_stream(streams.Reorders), s.test_id_order, {}),
    (with_stream(streams.DeletesOnAck), s.test_read, {}),
    (with_stream(streams.ReadsTwice), s.test_read, {}),
    (with_stream(streams.ReadsTwice), s.test_tail, {"begin": "earliest"}),
    (with_stream(streams.IgnoresKeys), o.test_one_after_another, {}),
    (with_stream(streams.IgnoresKeys), o.test_ordered_work, {}),
    (with_group(groups.PassesTurns), o.test_failures_keep_the_turn, {}),
    (with_group(groups.PassesTurns), o.test_closing_keeps_the_turn, {}),
    (with_group(groups.KeepsTurns), o.test_what_passes_the_turn, {"way": "reject"}),
    (with_group(groups.KeepsTurns), o.test_what_passes_the_turn, {"way": "expire"}),
    (with_stream(streams.CancelsSilently), o.test_what_passes_the_turn, {"way": "cancel"}),
    (with_stream(streams.SharesGroups), o.test_groups_keep_their_own_turns, {}),
    (with_group(groups.RedrivesFirst), o.test_a_redriven_letter_queues, {}),
    (with_stream(streams.IgnoresDelays), o.test_each_at_its_own_time, {}),
    (with_stream(streams.RingsNobody), o.test_the_turn_wakes_who_waits, {}),
    (with_stream(streams.IgnoresDelays), t.test_delays, {}),
    (with_stream(streams.IgnoresTimes), t.test_delays, {}),
    (with_group(groups.HoldsUpOthers), t.test_delays, {}),
    (with_group(groups.CountsParking), t.test_delays, {}),
    (with_stream(streams.DeafToTime), t.test_in_time, {"way": "delay"}),
    (with_stream(streams.DeafToTime), t.test_in_time, {"way": "at"}),
    (with_stream(streams.DeafToTime), t.test_in_time, {"way": "nack"}),
    (with_stream(streams.CancelsAnything), t.test_cancel_changes_nothing_else, {}),
    (with_stream(streams.CancelsNothing), t.test_cancel, {}),
    (with_stream(streams.CancelsSilently), t.test_cancel, {}),
    (with_stream(streams.ForgetsDedupIds), t.test_add_once, {}),
    (with_stream(streams.RemembersForEver), t.test_add_once, {}),
    (with_stream(streams.SlidesWindows), t.test_add_once, {}),
    (with_stream(streams.CancelsWithoutTheId), t.test_add_once_after_cancel, {}),
    (with_stream(streams.FreesAnyId), t.test_add_once_after_cancel, {}),
    (with_stream(streams.ForgetsTheCall), t.test_add_once_again_after_cancel, {}),
    (with_stream(streams.ForgetsWhatIsTrimmed), t.test_add_once_after_trim, {"retention": ailf.Retention.settled()}),
    (with_stream(streams.AddsFirst), t.test_add_once_by_many, {}),
    (with_stream(streams.KeepsDedupIds), t.test_add_once_ids, {}),
    (with_stream(streams.ForgetsHeaders), t.test_every_way_to_add_has_the_options, {}),
    (with_stream(streams.IgnoresOverrides), t.test_deliveries_of_one_message, {"way": "nack"}),
    (with_stream(streams.IgnoresOverrides), t.test_deliveries_of_one_message, {"way": "expire"}),
    (with_pubsub(requests.HearsNobody), q.test_a_return_value_answers, {}),
    (with_pubsub(requests.LosesReplies), q.test_everybody_gets_his_own_reply, {}),
    (with_pubsub(requests.SharesShards), q.test_sharded_channels, {}),
    (with_stream(streams.TrimsUnsettled), r.test_full, {}),
    (with_stream(streams.TrimsUnsettled), r.test_two_groups, {}),
    (with_stream(streams.NeverTrims), r.test_without_groups, {}),
    (with_stream(streams.NeverFull), r.test_full, {}),
    (with_stream(streams.NeverFull), r.test_waiting_for_room, {}),
    (with_stream(streams.StopsAtTheUnsettled), r.test_full, {}),
    (with_stream(streams.StopsAtTheUnsettled), r.test_one_that_waits_fills_nothing, WAITS),
    (with_stream(streams.RefusesWhenBehind), r.test_what_is_behind, {}),
    (with_stream(streams.RefusesOnlyWhenSure), r.test_full_of_many, {}),
    (with_stream(streams.TrimsAPage), r.test_a_trim_finds_all, {"way": "age", "share": 0.5}),
    (with_stream(streams.TrimsAPage), r.test_many_at_once, {}),
    (with_stream(streams.KeepsTheSettled), r.test_settled, {}),
    (with_stream(streams.SettlesForNobody), r.test_settled, {}),
    (with_stream(streams.SettlesForNobody), r.test_settled_and_full, {}),
    (with_stream(streams.CountsWhatWas), r.test_length, {}),
    (with_stream(streams.AddsHalf), r.test_full, {}),
    (with_stream(streams.RemembersRefused), r.test_full, {}),
    (with_stream(streams.CountsNoEvictions), r.test_hard, {}),
    (with_stream(streams.IgnoresAge), r.test_age, {}),
    (with_group(members.SparesOnlyUnread), r.test_what_is_spared, {"state": "in hand"}),
    (with_group(members.SparesOnlyUnread), r.test_what_is_spared, {"state": "scheduled"}),
    (with_group(members.SparesOnlyUnread), r.test_what_queues_is_spared, {}),
    (with_stream(members.SparesOnlyRead), r.test_what_is_spared, {"state": "unread"}),
    (with_stream(members.SparesOnlyRead), r.test_two_groups, {}),
    (with_group(members.KeepsTheGone), r.test_hard_takes_what_is_out, {}),
    (with_stream(streams.MistakesTimes), st.test_times, {}),
    (with_group(members.SeeksSoftly), st.test_seek, {"where": "latest"}),
    (with_group(members.SeeksSoftly), st.test_what_a_seek_keeps, {}),
    (with_group(groups.RepeatsGrants), st.test_old_deliveries_after_a_seek, {}),
    (with_group(groups.RepeatsGrants), st.test_old_deliveries_after_a_reset, {"what": "group"}),
    (with_group(members.SeekLosesRedriven), st.test_what_a_seek_keeps, {}),
    (with_group(members.SeekLosesRedriven), st.test_an_entry_and_its_redriven_letter, {}),
    (with_group(members.SeekLosesLetters), st.test_what_a_seek_keeps, {}),
    (with_stream(members.SeeksTheMissing), st.test_steering_what_is_missing, {"there": True}),
    (with_stream(members.SeeksTheMissing), st.test_steering_what_is_missing, {"there": False}),
    (with_stream(members.PausesTheMissing), st.test_steering_what_is_missing, {"there": False}),
    (with_stream(members.IgnoresPauses), st.test_pause, {}),
    (with_group(members.BuriesWhilePaused), st.test_a_pause_buries_nothing, {}),
    (with_stream(streams.DeafToSteering), st.test_steering_wakes_who_waits, {"way": "resume"}),
    (with_stream(streams.DeafToSteering), st.test_steering_wakes_who_waits, {"way": "seek"}),
    (with_stream(members.DeletesNoLetters), st.test_delete_a_group, {}),
    (with_stream(members.SaysItExists), i.test_info_of_what_is_missing, {}),
    (with_stream(members.MistakenInfo), i.test_info_of_what_is_missing, {}),
    (with_group(members.WrongLag), i.test_counts_after_anything, {}),
    (with_group(members.WrongPending), i.test_counts_after_anything, {}),
    (with_group(members.WrongPending), i.test_info_in_every_state, {}),
    (with_group(members.WrongPending), i.test_info_of_what_queues, {}),
    (with_group(members.WrongConsumers), i.test_info_in_every_state, {}),
    (with_group(members.WrongOldest), i.test_the_oldest, {}),
    (with_stream(streams.CancelsSilently), i.test_counts_after_anything, {}),
    (with_stream(members.NeverDie), lv.test_a_dead_consumer, {}),
    (with_stream(members.NeverDie), lv.test_signs_of_life, {}),
    (with_stream(members.NeverDie), lv.test_signs_of_life_end_with_the_work, {}),
    (with_stream(members.IgnoresSignsOfLife), lv.test_signs_of_life, {}),
    (with_stream(members.IgnoresSignsOfLife), lv.test_a_slow_one_keeps_its_message, {}),
    (with_group(members.LosesWorkOfTheDead), lv.test_a_dead_consumer, {}),
    (with_group(members.ForgivesTheDead), lv.test_a_dead_consumer, {}),
    (with_group(members.RemembersTheDead), lv.test_signs_of_life, {}),
    (with_stream(groups.IgnoresLeases), lv.test_max_processing, {}),
    (with_group(groups.CountsOn), dl.test_redrive, {}),
    (with_group(groups.CountsOn), dl.test_redriven_and_failed_again, {}),
    (with_group(groups.RedrivesTwice), dl.test_redriven_once, {}),
    (with_group(groups.PurgesNothing), dl.test_purge, {}),
    (with_stream(groups.RedrivesToAll), dl.test_redrive, {}),
    (with_group(groups.NeedsTheEntry), dl.test_redriven_after_its_entry_is_gone, {}),
    (with_stream(streams.DeafToRedrives), dl.test_a_redrive_wakes_who_waits, {"way": "one"}),
    (with_backend(locks.EntersUnlocked, locks.AsyncEntersUnlocked), lh.test_entering, {}),
    (with_backend(locks.SharesEntries, locks.AsyncSharesEntries), lh.test_leaving_elsewhere, {}),
    (with_lock(locks.RepeatsFences), lk.test_fences_rise, {}),
    (with_lock(locks.ForgetsFences), lk.test_fences_rise, {}),
    (with_lock(locks.NumbersTries), lk.test_the_same_bid_again, {}),
    (with_lock(locks.ReleasesOthers), lk.test_stale_leases, {"way": "expired", "successor": True}),
    (with_lock(locks.RevivesLocks), lk.test_stale_leases, {"way": "expired", "successor": False}),
    (with_lock(locks.IgnoresBreaks), lk.test_stale_leases, {"way": "broken", "successor": False}),
    (with_lock(locks.ExtendsOthers), lk.test_stale_leases, {"way": "expired", "successor": True}),
    (with_lock(locks.EndsLate), lk.test_the_end_of_a_lease, {}),
    (with_lock(locks.EndsEarly), lk.test_the_end_of_a_lease, {}),
    (with_lock(locks.AddsTime), lk.test_extending, {}),
    (with_lock(locks.GrantsTwice), lk.test_nobody_has_it_twice, {}),
    (with_lock(locks.GrantsTwice), lw.test_never_too_many, {"permits": 1}),
    (with_lock(locks.SharesLocks), lk.test_locks_are_apart, {}),
    (with_lock(locks.GrantsParts), lk.test_several_names, {}),
    (with_lock(locks.IgnoresPermits), lk.test_permits, {}),
    (with_lock(lines.LetsBarge), lk.test_nobody_barges, {}),
    (with_lock(lines.LastComeFirst), lw.test_turns, {}),
    (with_lock(lines.WakesNobody), lw.test_a_freed_lock_wakes_a_waiter, {"fair": True, "way": "release"}),
    (with_lock(lines.KeepsTheDead), lw.test_a_dead_waiter, {}),
    (with_lock(locks.LooksAtOne), lk.test_several_names, {}),
    (with_lock(locks.NumbersNames), lk.test_fences_rise, {}),
    (with_lock(locks.CutsSeconds), lk.test_the_end_of_a_lease, {}),
    (with_lock(locks.ExtendsByHalf), lk.test_extending, {}),
    (with_lock(locks.NeverShortens), lk.test_extending, {}),
    (with_lock(locks.NeverExtends), lk.test_extending, {}),
    (with_lock(locks.ExtendsOne), lk.test_extending, {}),
    (with_lock(locks.ExtendsParts), lk.test_several_names, {}),
    (with_lock(locks.KeepsTime), lk.test_the_same_bid_again, {}),
    (with_lock(locks.ReleasesParts), lk.test_several_names, {}),
    (with_lock(locks.ReleasesGladly), lk.test_stale_leases, {"way": "expired", "successor": False}),
    (with_lock(locks.BreaksAnybody), lk.test_permits, {}),
    (with_lock(locks.InspectsByTrying), lk.test_several_names, {}),
    (with_lock(locks.ShowsTheEnded), lk.test_stale_leases, {"way": "expired", "successor": False}),
    (with_lock(lines.WakesEverybody), lw.test_turns, {}),
    (with_lock(lines.WakesOnlyOne), lw.test_a_pair_starves_nobody, {}),
    (with_lock(lines.KeepsWakeUps), lw.test_a_pair_starves_nobody, {}),
    (with_lock(lines.QueuesAnew), lk.test_places, {}),
    (with_lock(lines.QueuesTries), lk.test_several_names, {}),
    (with_lock(lines.NeverLeaves), lk.test_nobody_barges, {}),
    (with_lock(lines.KeepsPlaces), lk.test_places, {}),
    (with_lock(lines.GivesNoTime), lk.test_places, {}),
    (with_lock(lines.KeepsHalfAPlace), lw.test_a_waiter_that_was_away, {}),
    (with_limiter(limiters.LetsAllPass), rl.test_all_or_nothing, {}),
    (with_limiter(limiters.LetsAllPass), rl.test_together, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.ChargesParts), rl.test_all_or_nothing, {}),
    (with_limiter(limiters.ChargesTheDenied), rl.test_denied_calls, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.IgnoresTheDenied), rl.test_denied_calls, {"limit": rl.SLOW[1]}),
    (with_limiter(limiters.AllowsOneMore), rl.test_what_remains, {"limit": rl.SLOW[2]}),
    (with_limiter(limiters.AlignsWindows), rl.test_a_window_slides, {"limit": rl.QUICK[2]}),
    (with_limiter(limiters.ChargesOne), rl.test_what_remains, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.SharesKeys), rl.test_looking_changes_nothing, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.CountsPeeks), rl.test_looking_changes_nothing, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.TrustsTheClock), rl.test_time_steps_back, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.SumsInDoubles), rl.test_large_numbers, {}),
    (with_limiter(limiters.OwesWhatALargerLimitCharged), rl.test_a_limit_is_made_smaller, SMALLER),
    (with_limiter(limiters.TellsNoTime), rl.test_retry_after_is_exact, {"limit": rl.QUICK[0]}),
    (with_limiter(limiters.RoundsTime), rl.test_retry_after_is_exact, {"limit": rl.QUICK[1]}),
    (with_limiter(limiters.NeverSaysNever), rl.test_too_large, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.TellsOneLess), rl.test_what_remains, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.TellsWhatWas), rl.test_what_remains, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.NeverFresh), rl.test_reset_after, {"limit": rl.QUICK[0]}),
    (with_limiter(limiters.ForgetsSoon), rl.test_reset_after, {"limit": rl.QUICK[0]}),
    (with_limiter(limiters.SettlesNothing), rl.test_settle, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.OnlyGivesBack), rl.test_settle, {"limit": rl.SLOW[1]}),
    (with_limiter(limiters.GivesBackLate), rl.test_settled_late, {"limit": rl.QUICK[0]}),
    (with_limiter(limiters.GivesBackTwice), rl.test_settled_once, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.KeepsPlaces), rl.test_parallel_places, {}),
    (with_limiter(limiters.ExtendsNothing), rl.test_places_end, {}),
    (with_limiter(limiters.ResetsNothing), rl.test_looking_changes_nothing, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.ResetsAll), rl.test_looking_changes_nothing, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.BelievesTheProvider), rl.test_observe, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.HearsNothing), rl.test_observe, {"limit": rl.SLOW[0]}),
    (with_limiter(limiters.HasNoLine), rw.test_small_calls_do_not_starve_a_large_one, {}),
    (with_limiter(limiters.WakesNobody), rw.test_what_is_given_back_wakes_who_waits, {}),
    (with_limiter(limiters.LastComeFirst), rw.test_in_turn, {}),
    (with_limiter(limiters.NeverLeaves), rw.test_who_gives_up_gives_everything_back, {}),
    (with_limiter(limiters.RemembersForLonger), rl.test_remembered_denials, {}),
    (with_listener(broken.LosesPublished), p.test_confirmed_on_entry, {}),
    (with_listener(broken.NeverConfirms), p.test_confirmed_on_entry, {}),
    (with_listener(broken.RepeatsMessages), p.test_once_per_subscription, {}),
    (with_listener(broken.SwapsMessages), p.test_order_and_no_replay, {}),
    (with_listener(broken.Replays), p.test_order_and_no_replay, {}),
    (with_listener(broken.LeavesAll), p.test_leaving_one_of_two, {}),
    (with_listener(broken.LiteralPatterns), p.test_pattern_grammar, {}),
    (with_listener(broken.ShellPatterns), p.test_pattern_grammar, {}),
    (with_listener(broken.HidesGaps), p.test_gaps, {}),
    (with_listener(broken.ReadsOnlyText), p.test_broken_messages, {}),
    (with_listener(broken.HidesWhatIsNoText), p.test_broken_messages, {}),
    (with_listener(broken.EndsLate), c.test_ends_promptly, {}),
]

ON_ASYNCIO: list[tuple[type[BrokenHarness], Test, dict[str, Any]]] = [
    (with_pubsub(broken.KeepsItsFirstLoop), b.test_one_loop_after_another, {}),
    (with_stream(streams.MixesReplies), x.test_cancelled_adds, {}),
    (with_stream(groups.SettlesTogether), d.test_settling_two_ways_at_once, {}),
]

KEPT_BY_CORE = {
    "B1": "opening by URL is the registry's work, and each plugin's: tests/ailf, tests/ailf_redis",
    "B2": "the core looks at what is declared, and every other test at what that is worth",
    "P4": "the buffers are the core's",
    "P6": "the core returns nothing, whatever a driver does",
    "S15": "the worker is the core's",
    "L7": "what remains is told by this process's clock",
    "L8": "losses are told by this process's clock",
    "L9": "holding is the core's",
    "L10": "withdrawing is the core's",
    "L13": "waiting is the core's",
    "L17": "renewing is the core's",
}
"""Clauses that no driver can break, so that no backend here does."""

CAUGHT = (AssertionError, ailf.AilfError, pytest.fail.Exception, NotImplementedError)
"""How a test of the suite fails. A backend that breaks down with anything else would be broken in the wrong way."""

PATIENCE = 0.4
"""Seconds. What is broken is not waited for as long as what is not."""


def named(case: object) -> str | None:
    """Return a case's name."""
    return "-".join(map(str, case.values())) if isinstance(case, dict) else getattr(case, "__name__", None)


def caught(*case: Any) -> bool:
    """Tell whether a test of the suite fails, within a few tries."""
    for _ in range(TRIES):
        try:
            perform(*case, PATIENCE)
        except CAUGHT:
            return True
    return False


def perform(
    harness: type[BrokenHarness], test: Test, flavour: str, options: dict[str, Any], patience: float = Harness.patience
) -> None:
    """Run one test of the suite."""
    place = harness()
    place.patience = patience
    asyncio.run(live(World(place, flavour), test, **options))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ailf.driver.BackendDriver.timeout", PATIENCE / 2)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize(("harness", "test", "options"), BROKEN, ids=named)
def test_caught(harness: type[BrokenHarness], test: Test, options: dict[str, Any], flavour: str) -> None:
    """A backend that is broken in this way fails this test of the suite."""
    assert caught(harness, test, flavour, options)


@pytest.mark.parametrize(("harness", "test", "options"), ON_ASYNCIO, ids=named)
def test_caught_on_asyncio(harness: type[BrokenHarness], test: Test, options: dict[str, Any]) -> None:
    """A backend that is broken in this way, which only tasks can meet, fails this test of the suite."""
    assert caught(harness, test, "asyncio", options)


WHOLE = {(test, *options.items()): (test, options) for _, test, options in BROKEN}


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize(("test", "options"), WHOLE.values(), ids=named)
def test_whole(test: Test, options: dict[str, Any], flavour: str) -> None:
    """The same way of running a test passes where nothing is broken."""
    perform(BrokenHarness, test, flavour, options)


def test_every_clause_is_broken_by_somebody() -> None:
    """For each clause there is a backend that breaks it and is caught, or a reason why there can be none."""
    caught = {each for _, test, _ in (*BROKEN, *ON_ASYNCIO) for each in clauses(test)}
    assert caught.isdisjoint(KEPT_BY_CORE)
    assert covered() == caught | set(KEPT_BY_CORE)
