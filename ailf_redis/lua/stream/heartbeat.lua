-- Count consumers of a group as alive for a while.
--
-- ARGV    group, alive_ms, consumers…
-- returns how many were not counted as alive before
-- bound   the consumers that are named

local limit = number(now + ARGV[2])
local new = 0
for i = 3, #ARGV do new = new + redis.call('ZADD', alive, limit, ARGV[i]) end
return new
