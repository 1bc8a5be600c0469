-- Settle deliveries of a group; one whose lease has ended changes nothing.
--
-- KEYS[1] stream   KEYS[2] due   KEYS[3] notes   KEYS[4] dead   KEYS[5] bell      (see fetch.lua)
-- ARGV    group, max_deliveries, then for each delivery: id, consumer, times delivered,
--         action (ack | nack | reject | release), delay in ms, reason, error
-- returns for each delivery 1, or 0 where its lease has ended
-- writes  KEYS[1..4] without TTL (see fetch.lua); KEYS[5] with a TTL of 10 s

local stream, due, notes, dead, bell = unpack(KEYS)
local group, most = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local EACH = 7
local rung = false
local done = {}

local probe = redis.pcall('XPENDING', stream, group, '-', '+', 1)
if probe.err then
  if not string.find(probe.err, 'NOGROUP', 1, true) then return probe end
  for i = 1, (#ARGV - 2) / EACH do done[i] = 0 end
  return done
end

local function mine(id, consumer, grant)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if not pending or pending[2] ~= consumer or pending[4] ~= grant then return false end
  local ends = redis.call('ZSCORE', due, id)
  return not ends or tonumber(ends) > now
end

local function finish(id)
  redis.call('XACK', stream, group, id)
  redis.call('ZREM', due, id)
  redis.call('HDEL', notes, id .. ':f', id .. ':e')
end

local function bury(id, attempt, reason, why)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    local fields = entry[2]
    if #fields > 2000 then fields = { 'ailf.packed', cmsgpack.pack(fields) } end
    redis.call('XADD', dead, '*', 'ailf.origin', id, 'ailf.reason', reason, 'ailf.error', why,
      'ailf.attempts', attempt, unpack(fields))
  end
  finish(id)
end

-- Nobody's for now: owned by a name that no consumer has, so that its receipt proves nothing any more.
local function park(id, delay)
  redis.call('XCLAIM', stream, group, 'ailf.waiting', 0, id, 'JUSTID')
  redis.call('ZADD', due, string.format('%.0f', now + delay), id)
  rung = true
end

for i = 3, #ARGV, EACH do
  local id, consumer, grant, action, delay, reason, why = unpack(ARGV, i, i + EACH - 1)
  grant = tonumber(grant)
  if mine(id, consumer, grant) then
    local attempt = grant - (redis.call('HGET', notes, id .. ':f') or 0)
    if action == 'ack' then
      finish(id)
    elseif action == 'reject' then
      bury(id, attempt, reason, why)
    elseif action == 'nack' and attempt >= most then
      bury(id, attempt, 'max_deliveries', why)
    elseif action == 'nack' then
      redis.call('HSET', notes, id .. ':e', why)
      park(id, tonumber(delay))
    else
      redis.call('HINCRBY', notes, id .. ':f', 1)
      park(id, 0)
    end
    done[#done + 1] = 1
  else
    done[#done + 1] = 0
  end
end

if rung then
  redis.call('XADD', bell, 'MAXLEN', 1, '*', 'r', 1)
  redis.call('PEXPIRE', bell, 10000)
end
return done
