-- Move a group to a position. Its pending entries are dropped, redriven ones are due again, all receipts are invalid.
--
-- ARGV    group, position (an id, or $ for the end)
-- returns 1, or 0 if the group is missing, and then nothing is changed

if missing then return 0 end
redis.call('XGROUP', 'DESTROY', stream, group)
redis.call('XGROUP', 'CREATE', stream, group, ARGV[2])
reset_group()
notify()
return 1
