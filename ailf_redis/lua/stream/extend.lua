-- Let leases of a group end later; one that has ended changes nothing.
--
-- ARGV    group, lease_ms, then for each delivery: member, consumer, grant
-- returns for each delivery 1, or 0 where its lease has ended
-- bound   the deliveries that are named

local limit = number(now + ARGV[2])
local EACH = 3
local kept = {}

local function extend(member, consumer, grant)
  local row = not missing and pending(member)
  if not row or row[2] ~= consumer or row[4] + base ~= tonumber(grant) then return 0 end
  local ends = redis.call('ZSCORE', due, member)
  if ends and tonumber(ends) <= now then return 0 end
  redis.call('ZADD', due, limit, member)
  return 1
end

for i = 3, #ARGV, EACH do kept[#kept + 1] = extend(unpack(ARGV, i, i + EACH - 1)) end
return kept
