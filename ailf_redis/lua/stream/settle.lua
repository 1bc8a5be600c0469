-- Settle deliveries of a group; one whose lease has ended changes nothing.
--
-- ARGV    group, max_deliveries, then for deliveries of which the same is said: consumer, grant,
--         action (ack | nack | reject | release), delay in ms, reason, error, how many they are, their members
-- returns for each delivery 0 where its lease has ended, 1 when it is done, 2 when it is a dead letter now
-- bound   the deliveries

local most = tonumber(ARGV[2])
local SAID = 7 -- how many arguments come before the members
local done = {}
local acked = {} -- what is acknowledged and has no notes: all at once in the end
local over = {} -- what is settled: a receipt for it is worth nothing any more

-- Whether there are notes on any message, besides those on the group itself.
local function noted()
  local own = 0
  for _, value in ipairs(redis.call('HMGET', notes, 'base', 'paused', 'cursor', 'sweep', 'anew')) do
    if value then own = own + 1 end
  end
  return redis.call('HLEN', notes) > own
end

local plain = not missing and not noted()

-- What is known of several at once: rows of the pending list from the first to the last, which are mostly all of them,
-- and when their leases end. What isn't known is asked for one by one.
local rows, ends_of = {}, {}
local MANY = 1000

local function look()
  local members = {}
  local at = 3
  while ARGV[at] do
    local last = at + SAID - 1 + ARGV[at + SAID - 1]
    for n = at + SAID, last do members[#members + 1] = ARGV[n] end
    at = last + 1
  end
  if missing or #members < 2 or #members > MANY then return end
  local ends = redis.call('ZMSCORE', due, unpack(members))
  for at, member in ipairs(members) do ends_of[member] = ends[at] end
  local found = redis.pcall('XPENDING', stream, group, members[1], members[#members], 2 * #members, ARGV[3])
  for _, row in ipairs(found.err and {} or found) do rows[row[1]] = row end
end

local function holds(member, consumer, grant) -- the row, where the lease holds
  local row = not missing and not over[member] and (rows[member] or pending(member))
  if not row or row[2] ~= consumer or row[4] + base ~= grant then return nil end
  local ends = ends_of[member]
  if ends == nil then ends = redis.call('ZSCORE', due, member) end
  if ends and tonumber(ends) <= now then return nil end
  return row
end

local function settle(member, consumer, grant, action, delay, reason, why)
  local row = holds(member, consumer, grant)
  if not row then return 0 end
  over[member] = true
  if action == 'ack' then
    if plain and string.byte(member) ~= 126 then
      acked[#acked + 1] = member
    else
      finish(member)
    end
    return 1
  end
  plain = false -- what follows leaves a note
  if action == 'release' then
    forgive(member)
    park(member, number(now + delay))
    rung = true
    return 1
  end
  local forgiven, own = unpack(redis.call('HMGET', notes, member .. ':f', member .. ':m'))
  local attempt = attempts(row, forgiven)
  if action == 'reject' or attempt >= (tonumber(own) or most) then
    return bury(member, attempt, action == 'reject' and reason or 'max_deliveries', why) and 2 or 1
  end
  redis.call('HSET', notes, member .. ':e', why)
  park(member, number(now + delay))
  rung = true
  return 1
end

look()
local at = 3
while ARGV[at] do
  local consumer, grant, action, delay, reason, why, count = unpack(ARGV, at, at + SAID - 1)
  for n = at + SAID, at + SAID - 1 + count do
    done[#done + 1] = settle(ARGV[n], consumer, tonumber(grant), action, delay, reason, why)
  end
  at = at + SAID + count
end
for first = 1, #acked, MANY do
  local last = math.min(first + MANY - 1, #acked)
  redis.call('XACK', stream, group, unpack(acked, first, last))
  redis.call('ZREM', due, unpack(acked, first, last))
end
ring()
return done
