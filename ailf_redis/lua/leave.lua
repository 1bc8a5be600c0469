-- Release everything a consumer holds and forget the consumer, in one step, so that nothing is dropped with it.
--
-- KEYS[1] stream   KEYS[2] due   KEYS[3] notes   KEYS[4] bell      (see fetch.lua)
-- ARGV    group, consumer
-- returns how many entries were given back
-- writes  KEYS[1..3] without TTL (see fetch.lua); KEYS[4] with a TTL of 10 s

local stream, due, notes, bell = unpack(KEYS)
local group, consumer = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local PAGE = 100
local given = 0

while true do
  local rows = redis.pcall('XPENDING', stream, group, '-', '+', PAGE, consumer)
  if rows.err then
    if string.find(rows.err, 'NOGROUP', 1, true) then return 0 end
    return rows
  end
  for _, row in ipairs(rows) do
    local id = row[1]
    local ends = redis.call('ZSCORE', due, id)
    if not ends or tonumber(ends) > now then -- released; one whose lease has ended was an attempt
      redis.call('HINCRBY', notes, id .. ':f', 1)
    end
    redis.call('XCLAIM', stream, group, 'ailf.waiting', 0, id, 'JUSTID')
    if redis.call('XPENDING', stream, group, id, id, 1, consumer)[1] then -- deleted from the stream; 6.2 keeps it pending
      redis.call('XACK', stream, group, id)
    end
    redis.call('ZADD', due, now_text, id)
    given = given + 1
  end
  if #rows < PAGE then break end
end

redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer)
if given > 0 then
  redis.call('XADD', bell, 'MAXLEN', 1, '*', 'r', 1)
  redis.call('PEXPIRE', bell, 10000)
end
return given
