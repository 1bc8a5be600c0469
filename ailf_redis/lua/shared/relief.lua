-- Let a script write on a server that is out of memory; loaded before the transitions that give something back.
--
-- At maxmemory a server refuses the commands that may need memory, in a script until the script's first write of any
-- kind. So the first write is one that changes nothing. A script that has written can't be killed: it must be bounded.
--
-- KEYS[2] a sorted set, or a key that doesn't exist
-- returns nothing by itself
-- writes  nothing

local NO_MEMBER = '' -- our sorted sets have no empty member
redis.call('ZREM', KEYS[2], NO_MEMBER)
