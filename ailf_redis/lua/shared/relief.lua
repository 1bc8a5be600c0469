-- Let what follows write on a server that has no memory left; it stands before the texts of those that give things back.
--
-- A server at maxmemory refuses the commands that may need memory, in a script until its first write of any kind. So the
-- first write is one of nothing. A script that has written can't be killed any more: what follows has to be bounded.
--
-- KEYS[2] a sorted set, or nothing
-- returns nothing by itself
-- writes  nothing

local NOBODY = '' -- no member of a sorted set of ours is empty
redis.call('ZREM', KEYS[2], NOBODY)
