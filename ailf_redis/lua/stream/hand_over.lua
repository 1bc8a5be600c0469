-- Give up the watch of a group: another waiter that sleeps gets it.
--
-- ARGV    group, waiter, alive_ms
-- returns 1, or 0 if the waiter doesn't have the watch, or if no other one sleeps

if missing then return 0 end
local alive_for = tonumber(ARGV[3])
local holder, _, asleep = read_watch(watch, alive_for)
if holder ~= ARGV[2] then return 0 end
if asleep > now then
  hand_over(alive_for, asleep, paused)
  return 1
end
redis.call('HDEL', notes, 'watch') -- the next one that asks gets it
return 0
