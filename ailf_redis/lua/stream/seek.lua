-- Let a group go on after a position; what is out is forgotten, and its receipts prove nothing any more.
--
-- ARGV    group, position (an id, or $ for the end)
-- returns 1, or 0 where the group is missing, and then nothing is changed

if missing then return 0 end
redis.call('XGROUP', 'DESTROY', stream, group)
redis.call('XGROUP', 'CREATE', stream, group, ARGV[2])
restart()
ring()
return 1
