-- Pause a group, so that fetches lease nothing, or resume it.
--
-- ARGV    group, 1 (pause) or 0 (resume)
-- returns 1, or 0 if the group is missing

if missing then return 0 end
if ARGV[2] == '1' then
  redis.call('HSET', notes, 'paused', 1)
else
  redis.call('HDEL', notes, 'paused')
  must_notify = true
end
notify()
return 1
