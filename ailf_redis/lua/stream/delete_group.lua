-- Delete a group and its keys.
--
-- KEYS[10] wake    the tokens of the waiters that sleep (see watch.lua)
-- ARGV    group
-- returns 1, or 2 if another step has to continue (see reset.lua); 0 if the group is missing

local FEW = 1000 -- pending entries, which are removed together with the group

redis.call('UNLINK', due, dead, again, alive, queue, parked, KEYS[10])
if missing then
  redis.call('UNLINK', notes)
  return 0
end
must_notify = true -- a consumer that waits finds the group missing
if redis.call('XPENDING', stream, group)[1] > FEW then
  local reset_group = make_reset()
  reset_group()
  notify()
  return 2
end
redis.call('UNLINK', notes)
redis.call('XGROUP', 'DESTROY', stream, group)
notify()
return 1
