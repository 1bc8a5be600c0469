-- Read the consumers of a group; nothing is changed.
--
-- ARGV    group
-- returns { { consumer, ms until it counts as dead }…, { consumer, its leases }… }, both flat; a consumer may be twice
--         in the second; {} if there are more than MOST consumers
-- bound   the consumers of the group

local MOST = 10000
if missing then return { {}, {} } end
if redis.call('ZCARD', alive) > MOST then return {} end
local known, leases = redis.call('ZRANGE', alive, 0, -1, 'WITHSCORES'), {}
for i = 2, #known, 2 do
  local ends = tonumber(known[i]) or LARGEST -- another program may have stored infinity
  known[i] = math.ceil(math.max(-LARGEST, math.min(ends, LARGEST) - now))
end

local function count(key, name)
  local summary = redis.pcall('XPENDING', key, name)
  if summary.err or summary[1] == 0 then return end
  for _, row in ipairs(summary[4]) do
    if row[1] ~= WAITING then
      leases[#leases + 1] = row[1]
      leases[#leases + 1] = tonumber(row[2])
    end
  end
end

if not stale then count(stream, group) end -- else all of it is from before a reset
count(again, 'g')
if #leases > 2 * MOST then return {} end
return { known, leases }
