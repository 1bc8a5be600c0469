-- Read the state of a group; nothing is changed.
--
-- KEYS[10] meta    hash of the stream: "evicted" and "removed" (see retention.lua)
-- ARGV    group
-- returns { length, lag or -1, leased, waiting, dead letters, { consumer, its leases }…, age of the oldest unsettled
--         entry in ms or -1, evicted, paused, 1 or 0 if the group is missing }
-- bound   the consumers of the group, the groups of the stream, and MOST entries that are read on each side of the
--         group's position, but none after ROOM bytes and two entries

local MOST = 200 -- entries to count if the server's own lag may be wrong
local ROOM = 256 * 1024

local length = redis.call('XLEN', stream)
local evicted, removed = unpack(redis.call('HMGET', KEYS[10], 'evicted', 'removed'))
evicted, removed = tonumber(evicted or 0) or 0, tonumber(removed or 0) or 0
if missing then return { length, length, 0, 0, 0, {}, -1, 0, 0, 0 } end

-- The server's own lag is wrong after entries were removed that the group had not read (redis#13337). It is right if no
-- entry was ever removed but those that retention.lua counts, which all groups had settled. 6.2 has no lag.
local position, server_lag, added = '0-0', false, nil
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local info = map(flat)
  if info.name == group then position, server_lag = info['last-delivered-id'], info.lag end
  if info.lag and info['entries-read'] then added = info.lag + info['entries-read'] end
end
local lag = server_lag and added and added - length == removed and server_lag

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

if not stale then count(stream, group) end -- else all of it is from before a reset
waiting = waiting + redis.call('XLEN', parked)
local first_parked = redis.call('XRANGE', parked, '-', '+', 'COUNT', 1)[1]
note_oldest(first_parked and first_parked[1])
local some_read = oldest -- a read entry that isn't settled is older than any unread one; a redriven one needn't be
count(again, 'g')

-- Else the entries are counted on both sides of the group's position, until one side ends. The first unread one may be
-- the oldest that isn't settled.
if not lag or lag > 0 and not some_read then
  local next_unread, next_read, room = after(position), '-', ROOM
  local function read_one(from, to)
    local entry = from and redis.call('XRANGE', stream, from, to, 'COUNT', 1)[1]
    if entry then room = room - bytes_of(entry[2]) end
    return entry and entry[1]
  end
  local unread, read = 0, 0
  repeat
    local id = read_one(next_unread, '+')
    if not id then
      lag = lag or unread
    else
      if unread == 0 then note_oldest(id) end
      unread, next_unread = unread + 1, after(id)
      if not lag then
        id = read_one(next_read, position)
        if id then
          read, next_read = read + 1, after(id)
        else
          lag = length - read
        end
      end
    end
  until lag or unread == MOST or room <= 0
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', alive, '(' .. number(now), '+inf')) do
  consumers[name] = consumers[name] or 0
end
local names = {}
for name, messages in pairs(consumers) do
  names[#names + 1] = name
  names[#names + 1] = messages
end
local age = oldest and math.max(0, now - parts(oldest)) or -1
return { length, lag or -1, leased, waiting, redis.call('XLEN', dead), names, age, evicted, paused and 1 or 0, 1 }
