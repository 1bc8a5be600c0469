-- Settle deliveries of a group; one whose lease has ended changes nothing.
--
-- ARGV    group, max_deliveries, then for each delivery: member, consumer, grant,
--         action (ack | nack | reject | release), delay in ms, reason, error
-- returns for each delivery 0 where its lease has ended, 1 when it is done, 2 when it is a dead letter now

local most = tonumber(ARGV[2])
local EACH = 7
local done = {}

local function settle(member, consumer, grant, action, delay, reason, why)
  local row = not missing and pending(member)
  if not row or row[2] ~= consumer or row[4] + base ~= tonumber(grant) then return 0 end
  local ends = redis.call('ZSCORE', due, member)
  if ends and tonumber(ends) <= now then return 0 end
  if action == 'ack' then
    finish(member)
    return 1
  end
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
ring()
return done
