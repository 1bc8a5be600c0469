-- Lease entries of a group to a consumer: those due again first, then new ones in id order.
--
-- KEYS[1] stream   the stream with its groups; made again, with the group at its beginning, where it vanished
-- KEYS[2] due      sorted set: id -> ms when it may be delivered again (the end of its lease, or of its delay)
-- KEYS[3] notes    hash: "<id>:f" deliveries that don't count, "<id>:e" last error, "cursor" of the sweep
-- KEYS[4] dead     stream of dead letters
-- KEYS[5] bell     read only
-- ARGV    group, consumer, count, lease_ms, max_deliveries, sweep (1: adopt entries that other programs left pending)
-- returns { claims: { id, fields, times delivered, attempt }…, dead ids, reset, last id, last ring, next due in ms or -1 }
-- writes  KEYS[1..4]; without TTL: stream and dead are data, due and notes vanish with the last pending entry

local stream, due, notes, dead, bell = unpack(KEYS)
local group, consumer = ARGV[1], ARGV[2]
local count, lease, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = string.format('%.0f', now + lease)
local now_text = string.format('%.0f', now)
local SWEEP = 100
local ROUNDS = 8

local claims, buried, reset = {}, {}, 0

local probe = redis.pcall('XPENDING', stream, group, '-', '+', 1)
if probe.err then
  if not string.find(probe.err, 'NOGROUP', 1, true) then return probe end
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  redis.call('DEL', due, notes)
  reset = 1
end

local function forget(id)
  redis.call('ZREM', due, id)
  redis.call('HDEL', notes, id .. ':f', id .. ':e')
end

local function bury(id, attempt)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    local why = redis.call('HGET', notes, id .. ':e') or 'every lease ended unsettled'
    local fields = entry[2]
    if #fields > 2000 then fields = { 'ailf.packed', cmsgpack.pack(fields) } end
    redis.call('XADD', dead, '*', 'ailf.origin', id, 'ailf.reason', 'max_deliveries', 'ailf.error', why,
      'ailf.attempts', attempt, unpack(fields))
    buried[#buried + 1] = id
  end
  redis.call('XACK', stream, group, id)
  forget(id)
end

local function take(id)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if not pending then -- somebody acknowledged it without us
    forget(id)
    return
  end
  local attempt = pending[4] - (redis.call('HGET', notes, id .. ':f') or 0)
  if attempt >= most then
    bury(id, attempt)
    return
  end
  local entry = redis.call('XCLAIM', stream, group, consumer, 0, id)[1]
  if entry and entry[2] then
    redis.call('ZADD', due, limit, id)
    claims[#claims + 1] = { id, entry[2], pending[4] + 1, attempt + 1 }
  else -- deleted from the stream while it was pending
    redis.call('XACK', stream, group, id)
    forget(id)
  end
end

if ARGV[6] == '1' then
  local from = redis.call('HGET', notes, 'cursor') or '-'
  local rows = redis.call('XPENDING', stream, group, 'IDLE', lease, from, '+', SWEEP)
  for _, row in ipairs(rows) do
    redis.call('ZADD', due, 'NX', now_text, row[1])
  end
  if #rows == SWEEP then
    redis.call('HSET', notes, 'cursor', '(' .. rows[SWEEP][1])
  else
    redis.call('HDEL', notes, 'cursor')
  end
end

for _ = 1, ROUNDS do -- a bound on what one step does: the rest is due in the next
  if #claims >= count then break end
  local ids = redis.call('ZRANGEBYSCORE', due, '-inf', now_text, 'LIMIT', 0, count - #claims)
  if #ids == 0 then break end
  for _, id in ipairs(ids) do take(id) end
end

if #claims < count then
  local fresh = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count - #claims, 'STREAMS', stream, '>')
  for _, entry in ipairs(fresh and fresh[1] and fresh[1][2] or {}) do
    redis.call('ZADD', due, limit, entry[1])
    claims[#claims + 1] = { entry[1], entry[2], 1, 1 }
  end
end

if #claims > 0 or #buried > 0 then return { claims, buried, reset, '', '', -1 } end

local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
local ring = redis.call('XREVRANGE', bell, '+', '-', 'COUNT', 1)[1]
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
return { claims, buried, reset, last and last[1] or '0-0', ring and ring[1] or '0-0',
  first[2] and math.max(0, first[2] - now) or -1 }
