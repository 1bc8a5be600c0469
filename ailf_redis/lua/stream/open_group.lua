-- Make a group, after a position.
--
-- ARGV    group, position (an id, or $ for the end)
-- returns 1, or 0 where it exists, and then nothing is changed

if not missing then return 0 end
redis.call('XGROUP', 'CREATE', stream, group, ARGV[2], 'MKSTREAM')
restart()
return 1
