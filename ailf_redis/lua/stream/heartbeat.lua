-- Extend the time until which consumers of a group count as alive.
--
-- ARGV    group, alive_ms, consumers…
-- returns how many were not counted as alive before
-- bound   the named consumers

local ends = number(now + ARGV[2])
local new = 0
for i = 3, #ARGV do new = new + redis.call('ZADD', alive, ends, ARGV[i]) end
return new
