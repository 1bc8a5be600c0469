-- Read the state of a group; nothing is changed.
--
-- KEYS[9] meta     hash of the stream: "evicted" (see retention.lua)
-- ARGV    group
-- returns { length, lag or -1, leased, waiting, dead letters, { consumer, its leases }…, age of the oldest unsettled
--         entry in ms or -1, evicted, paused, 1 or 0 if the group is missing }
-- bound   the consumers of the group, and MOST entries

local MOST = 1000 -- entries to count if the server's own lag may be wrong

local length = redis.call('XLEN', stream)
local evicted = tonumber(redis.call('HGET', KEYS[9], 'evicted') or 0) or 0
if missing then return { length, length, 0, 0, 0, {}, -1, 0, 0, 0 } end

local position = '0-0'
local server_lag = false
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local info = map(flat)
  if info.name == group then position, server_lag = info['last-delivered-id'], info.lag end
end

-- Return the exact lag, or -1. The server's own is wrong after XTRIM of unread entries, and after XDEL (redis#13337).
local function lag()
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not last or not before(position, last[1]) then return 0 end
  if before(position, first[1]) then return length end
  local added = map(redis.call('XINFO', 'STREAM', stream))['entries-added']
  if server_lag and added == length then return server_lag end -- nothing was ever removed
  local unread = #redis.call('XRANGE', stream, '(' .. position, '+', 'COUNT', MOST + 1)
  if unread <= MOST then return unread end
  local read = #redis.call('XRANGE', stream, '-', position, 'COUNT', MOST + 1)
  return read <= MOST and length - read or -1
end

local leased, waiting, consumers, oldest = 0, 0, {}, nil

local function note_oldest(id)
  if id and (not oldest or before(id, oldest)) then oldest = id end
end

local function count(key, name)
  local summary = redis.pcall('XPENDING', key, name)
  if summary.err or summary[1] == 0 then return end
  note_oldest(summary[2])
  for _, row in ipairs(summary[4]) do
    if row[1] == WAITING then
      waiting = waiting + row[2]
    else
      leased = leased + row[2]
      consumers[row[1]] = (consumers[row[1]] or 0) + row[2]
    end
  end
end

count(stream, group)
count(again, 'g')
local behind = lag()
local unread = behind ~= 0 and redis.call('XRANGE', stream, '(' .. position, '+', 'COUNT', 1)[1]
note_oldest(unread and unread[1]) -- with a lag of 0 the position may be the largest id, which no range begins after
for _, name in ipairs(redis.call('ZRANGEBYSCORE', alive, '(' .. number(now), '+inf')) do
  consumers[name] = consumers[name] or 0
end
local names = {}
for name, messages in pairs(consumers) do
  names[#names + 1] = name
  names[#names + 1] = messages
end
local age = oldest and math.max(0, now - parts(oldest)) or -1
local paused = redis.call('HEXISTS', notes, 'paused')
return { length, behind, leased, waiting, redis.call('XLEN', dead), names, age, evicted, paused, 1 }
