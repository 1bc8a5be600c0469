-- Create a group that begins after a position.
--
-- ARGV    group, position (an id, or $ for the end)
-- returns 1, or 0 if it exists, and then nothing is changed

if not missing then return 0 end
redis.call('XGROUP', 'CREATE', stream, group, ARGV[2], 'MKSTREAM')
local reset_group = make_reset()
reset_group()
return 1
