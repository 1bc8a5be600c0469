-- Delete a group and its keys.
--
-- KEYS[9] wake     the tokens of the waiters that sleep (see watch.lua)
-- ARGV    group
-- returns 1, or 0 if it is missing

redis.call('DEL', due, notes, dead, again, alive, queue, KEYS[9])
if missing then return 0 end
redis.call('XGROUP', 'DESTROY', stream, group)
must_notify = true -- a consumer that waits finds the group missing
notify()
return 1
