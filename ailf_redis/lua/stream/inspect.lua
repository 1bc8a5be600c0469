-- Read what the group has made of one entry; nothing is changed.
--
-- ARGV[2] id of the entry
-- returns { state, consumer, ms until it may be delivered (again) or -1, attempts }; state: 0 the group is missing, 1 not
--         read, 2 leased, 3 waiting, 4 nothing is left to do, 5 unknown, as more messages were redriven than are read
-- writes  nothing
-- bound   the groups of the stream, and MOST redriven messages with their bodies, but none after ROOM bytes

local MOST = 100
local ROOM = 256 * 1024

if missing then return { 0, '', -1, 0 } end
local id = ARGV[2]

local function time_left(member)
  local at = tonumber(redis.call('ZSCORE', due, member) or math.huge)
  return at > LARGEST and -1 or math.max(0, math.ceil(at - now))
end

local function pending_state(member)
  local row = pending_row(member)
  if not row then return nil end
  local leased = row[2] ~= WAITING
  local tried = attempts(row, redis.call('HGET', notes, member .. ':f'))
  return { leased and 2 or 3, leased and row[2] or '', time_left(member), tried }
end

if not stale then -- else all that is pending is from before a reset
  local state = pending_state(id)
  if state then return state end
end
if parked_terms(id) then return { 3, '', time_left(id), 0 } end

local next_id, looked, room = '-', 0, ROOM
while next_id and looked < MOST and room > 0 do
  local entry = redis.call('XRANGE', again, next_id, '+', 'COUNT', 1)[1]
  if not entry then break end
  local member = '~' .. entry[1]
  if origin_of(member, entry[2]) == id then return pending_state(member) or { 3, '', time_left(member), 0 } end
  looked, room, next_id = looked + 1, room - bytes_of(entry[2]), after(entry[1])
end

for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local info = map(flat)
  if info.name == group and before(info['last-delivered-id'], id) then return { 1, '', -1, 0 } end
end
return { looked < redis.call('XLEN', again) and 5 or 4, '', -1, 0 }
