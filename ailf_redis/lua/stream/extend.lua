-- Extend leases of a group; one that has ended is not changed.
--
-- ARGV    group, lease_ms, then for each delivery: member, consumer, grant
-- returns for each delivery 1, or 0 if its lease has ended
-- bound   the named deliveries

local ends = number(now + ARGV[2])
local EACH = 3
local reply = {}

local function extend(member, consumer, grant)
  local row = not missing and pending_row(member)
  if not row or row[2] ~= consumer or row[4] + base ~= tonumber(grant) then return 0 end
  local current = redis.call('ZSCORE', due, member)
  if current and tonumber(current) <= now then return 0 end
  redis.call('ZADD', due, ends, member)
  return 1
end

for i = 3, #ARGV, EACH do reply[#reply + 1] = extend(unpack(ARGV, i, i + EACH - 1)) end
return reply
