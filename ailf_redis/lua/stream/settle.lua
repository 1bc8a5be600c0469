-- Settle deliveries of a group; one whose lease has ended is not changed.
--
-- ARGV    group, max_deliveries, then for each run of deliveries with the same settlement: consumer, grant,
--         action (ack | nack | reject | release), delay in ms, reason, error, the number of members, the members
-- returns for each delivery 0 if its lease has ended, 1 if it is done, 2 if it is a dead letter now
-- bound   the deliveries

local most = tonumber(ARGV[2])
local HEAD = 7 -- how many arguments come before the members
local reply = {}
local acked = {} -- acknowledged members without delivery metadata: one command for all at the end
local settled = {} -- the members that are settled: a second receipt for one is invalid

-- Tell whether there is delivery metadata of any member, besides that of the group itself.
local function any_metadata()
  local of_group = 0
  for _, value in ipairs(own_notes) do
    if value then of_group = of_group + 1 end
  end
  return redis.call('HLEN', notes) > of_group
end

local plain = not missing and not any_metadata()

-- Read several members at once: the rows of the pending list from the first to the last, which are mostly all of them,
-- and when their leases end. The others are read one by one.
local rows, ends_of = {}, {}
local MANY = 1000

local function read_many()
  local members = {}
  local at = 3
  while ARGV[at] do
    local last = at + HEAD - 1 + ARGV[at + HEAD - 1]
    for n = at + HEAD, last do members[#members + 1] = ARGV[n] end
    at = last + 1
  end
  if missing or #members < 2 or #members > MANY then return end
  local ends = redis.call('ZMSCORE', due, unpack(members))
  for at, member in ipairs(members) do ends_of[member] = ends[at] end
  local pending = redis.pcall('XPENDING', stream, group, members[1], members[#members], 2 * #members, ARGV[3])
  for _, row in ipairs(pending.err and {} or pending) do rows[row[1]] = row end
end

-- Return the row of a member whose lease holds, else nil.
local function leased_row(member, consumer, grant)
  local row = not missing and not settled[member] and (rows[member] or pending_row(member))
  if not row or row[2] ~= consumer or row[4] + base ~= grant then return nil end
  local ends = ends_of[member]
  if ends == nil then ends = redis.call('ZSCORE', due, member) end
  if ends and tonumber(ends) <= now then return nil end
  return row
end

-- Return the due time of a member that is given back: one with an ordering key that is due now waits for its turn.
local function due_time(member, delay)
  local in_turn = delay == '0' and has_lanes and redis.call('HGET', notes, member .. ':k')
  return in_turn and get_lanes().next_turn() or number(now + delay)
end

local function settle(member, consumer, grant, action, delay, reason, error_text)
  local row = leased_row(member, consumer, grant)
  if not row then return 0 end
  settled[member] = true
  if action == 'ack' then
    if plain and string.byte(member) ~= 126 then
      acked[#acked + 1] = member
    else
      finish(member)
    end
    return 1
  end
  plain = false -- what follows writes metadata
  if action == 'release' then
    uncount(member)
    set_waiting(member, due_time(member, delay))
    must_notify = true
    return 1
  end
  local uncounted, own_most = unpack(redis.call('HMGET', notes, member .. ':f', member .. ':m'))
  local attempt = attempts(row, uncounted)
  if action == 'reject' or attempt >= (tonumber(own_most) or most) then
    local recorded = action == 'reject' and reason or 'max_deliveries'
    return move_to_dead_letters(member, attempt, recorded, error_text) and 2 or 1
  end
  redis.call('HSET', notes, member .. ':e', error_text)
  set_waiting(member, due_time(member, delay))
  must_notify = true
  return 1
end

read_many()
local at = 3
while ARGV[at] do
  local consumer, grant, action, delay, reason, error_text, count = unpack(ARGV, at, at + HEAD - 1)
  for n = at + HEAD, at + HEAD - 1 + count do
    reply[#reply + 1] = settle(ARGV[n], consumer, tonumber(grant), action, delay, reason, error_text)
  end
  at = at + HEAD + count
end
for first = 1, #acked, MANY do
  local last = math.min(first + MANY - 1, #acked)
  redis.call('XACK', stream, group, unpack(acked, first, last))
  redis.call('ZREM', due, unpack(acked, first, last))
end
notify()
return reply
