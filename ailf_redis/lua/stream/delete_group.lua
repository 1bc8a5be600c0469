-- Remove a group and everything that is kept for it.
--
-- ARGV    group
-- returns 1, or 0 where it was missing

redis.call('DEL', due, notes, dead, again, alive, queue)
if missing then return 0 end
redis.call('XGROUP', 'DESTROY', stream, group)
rung = true -- a consumer that waits will find it gone
ring()
return 1
