-- Let a group's fetches lease nothing, or again something.
--
-- ARGV    group, 1 (pause) or 0 (resume)
-- returns 1, or 0 where the group is missing

if missing then return 0 end
if ARGV[2] == '1' then
  redis.call('HSET', notes, 'paused', 1)
else
  redis.call('HDEL', notes, 'paused')
  rung = true
end
ring()
return 1
