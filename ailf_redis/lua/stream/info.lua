-- How a group stands; changes nothing.
--
-- KEYS[9] meta     hash of the stream: "evicted" (see retention.lua)
-- ARGV    group
-- returns { length, lag or -1, in hand, waiting, dead letters, { consumer, messages in hand }…, age of the oldest
--         unsettled in ms or -1, evicted, paused, 1 or 0 where the group is missing }
-- bound   the consumers of the group, and MOST entries

local MOST = 1000 -- entries to count where the server can't be believed

local length = redis.call('XLEN', stream)
local evicted = tonumber(redis.call('HGET', KEYS[9], 'evicted') or 0) or 0
if missing then return { length, length, 0, 0, 0, {}, -1, 0, 0, 0 } end

local position = '0-0'
local said = false
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local each = map(flat)
  if each.name == group then position, said = each['last-delivered-id'], each.lag end
end

-- Exact or -1. The server's own is wrong after XTRIM of what was not read, and after XDEL (redis#13337).
local function lag()
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not last or not before(position, last[1]) then return 0 end
  if before(position, first[1]) then return length end
  local added = map(redis.call('XINFO', 'STREAM', stream))['entries-added']
  if said and added == length then return said end -- nothing was ever removed
  local unread = #redis.call('XRANGE', stream, '(' .. position, '+', 'COUNT', MOST + 1)
  if unread <= MOST then return unread end
  local read = #redis.call('XRANGE', stream, '-', position, 'COUNT', MOST + 1)
  return read <= MOST and length - read or -1
end

local held, waiting, consumers, oldest = 0, 0, {}, nil

local function older(id)
  if id and (not oldest or before(id, oldest)) then oldest = id end
end

local function count(key, name)
  local summary = redis.pcall('XPENDING', key, name)
  if summary.err or summary[1] == 0 then return end
  older(summary[2])
  for _, each in ipairs(summary[4]) do
    if each[1] == WAITING then
      waiting = waiting + each[2]
    else
      held = held + each[2]
      consumers[each[1]] = (consumers[each[1]] or 0) + each[2]
    end
  end
end

count(stream, group)
count(again, 'g')
local behind = lag()
local unread = behind ~= 0 and redis.call('XRANGE', stream, '(' .. position, '+', 'COUNT', 1)[1] -- none is after the last id
older(unread and unread[1])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', alive, '(' .. number(now), '+inf')) do
  consumers[name] = consumers[name] or 0
end
local names = {}
for name, messages in pairs(consumers) do
  names[#names + 1] = name
  names[#names + 1] = messages
end
return { length, behind, held, waiting, redis.call('XLEN', dead), names, oldest and math.max(0, now - parts(oldest)) or -1, evicted,
  redis.call('HEXISTS', notes, 'paused'), 1 }
