-- Delete a group and its keys.
--
-- ARGV    group
-- returns 1, or 0 if it is missing

redis.call('DEL', due, notes, dead, again, alive, queue)
if missing then return 0 end
redis.call('XGROUP', 'DESTROY', stream, group)
must_notify = true -- a consumer that waits finds the group missing
notify()
return 1
