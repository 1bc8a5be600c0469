-- Let a group go on after a position; what is out is forgotten, and its receipts prove nothing any more.
--
-- ARGV    group, position (an id, or $ for the end)
-- returns 1, or 0 where the group was missing and is made

if not missing then redis.call('XGROUP', 'DESTROY', stream, group) end
redis.call('XGROUP', 'CREATE', stream, group, ARGV[2], 'MKSTREAM')
restart()
ring()
return missing and 0 or 1
