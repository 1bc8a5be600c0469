-- Settle deliveries of a group; one whose lease has ended changes nothing.
--
-- ARGV    group, max_deliveries, then for each delivery: member, consumer, grant,
--         action (ack | nack | reject | release), delay in ms, reason, error
-- returns for each delivery 0 where its lease has ended, 1 when it is done, 2 when it is a dead letter now

local most = tonumber(ARGV[2])
local EACH = 7
local done = {}
local acked = {} -- what is acknowledged and has no notes: all at once in the end
local over = {} -- the same, by member: its receipt is worth nothing any more

-- Whether there are notes on any message, besides those on the group itself.
local function noted()
  local own = 0
  for _, value in ipairs(redis.call('HMGET', notes, 'base', 'paused', 'cursor', 'sweep')) do
    if value then own = own + 1 end
  end
  return redis.call('HLEN', notes) > own
end

local plain = not missing and not noted()

local function settle(member, consumer, grant, action, delay, reason, why)
  local row = not missing and not over[member] and pending(member)
  if not row or row[2] ~= consumer or row[4] + base ~= tonumber(grant) then return 0 end
  local ends = redis.call('ZSCORE', due, member)
  if ends and tonumber(ends) <= now then return 0 end
  if action == 'ack' then
    if plain and string.byte(member) ~= 126 then
      acked[#acked + 1] = member
      over[member] = true
    else
      finish(member)
    end
    return 1
  end
  plain = false -- what follows leaves a note
  if action == 'release' then
    forgive(member)
    park(member, number(now))
    rung = true
    return 1
  end
  local forgiven, own = unpack(redis.call('HMGET', notes, member .. ':f', member .. ':m'))
  local attempt = row[4] - (forgiven or 0)
  if action == 'reject' or attempt >= tonumber(own or most) then
    return bury(member, attempt, action == 'reject' and reason or 'max_deliveries', why) and 2 or 1
  end
  redis.call('HSET', notes, member .. ':e', why)
  park(member, number(now + delay))
  rung = true
  return 1
end

for i = 3, #ARGV, EACH do done[#done + 1] = settle(unpack(ARGV, i, i + EACH - 1)) end
if #acked > 0 then
  redis.call('XACK', stream, group, unpack(acked))
  redis.call('ZREM', due, unpack(acked))
end
ring()
return done
