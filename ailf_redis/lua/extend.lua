-- Let leases of a group end later; one that has ended changes nothing.
--
-- KEYS[1] stream   KEYS[2] due      (see fetch.lua)
-- ARGV    group, lease_ms, then for each delivery: id, consumer, times delivered
-- returns for each delivery 1, or 0 where its lease has ended
-- writes  KEYS[2] without TTL (see fetch.lua)

local stream, due = unpack(KEYS)
local group, lease = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = string.format('%.0f', now + lease)
local EACH = 3
local kept = {}

local probe = redis.pcall('XPENDING', stream, group, '-', '+', 1)
if probe.err and not string.find(probe.err, 'NOGROUP', 1, true) then return probe end

for i = 3, #ARGV, EACH do
  local id, consumer, grant = unpack(ARGV, i, i + EACH - 1)
  local pending = not probe.err and redis.call('XPENDING', stream, group, id, id, 1)[1]
  local ends = pending and redis.call('ZSCORE', due, id)
  if pending and pending[2] == consumer and pending[4] == tonumber(grant) and (not ends or tonumber(ends) > now) then
    redis.call('ZADD', due, limit, id)
    kept[#kept + 1] = 1
  else
    kept[#kept + 1] = 0
  end
end
return kept
