-- Extend leases of a group; one that has ended is not changed.
--
-- ARGV    group, lease_ms, then for each run of deliveries of one consumer with the same grant: consumer, grant, the
--         number of members, the members in the order of their ids
-- returns for each delivery 1, or 0 if its lease has ended
-- bound   the named deliveries, and as many others of their consumers

local ends = number(now + ARGV[2])
local HEAD = 3 -- how many arguments come before the members
local MANY = 1000 -- how many members one command gets
local reply = {}
local extended = {} -- the new scores of what is extended, and its members

-- Return the rows of the pending list of a run: of those from its first member to its last, which are mostly all of it.
-- The others are read one by one.
local function rows_of(first, last, consumer)
  local rows = {}
  if last == first or missing then return rows end
  local pending = redis.pcall('XPENDING', stream, group, ARGV[first], ARGV[last], 2 * (last - first + 1), consumer)
  for _, row in ipairs(pending.err and {} or pending) do rows[row[1]] = row end
  return rows
end

local function extend(first, last, consumer, grant)
  local rows = rows_of(first, last, consumer)
  local ends_of = redis.call('ZMSCORE', due, unpack(ARGV, first, last))
  for at = first, last do
    local member, current = ARGV[at], ends_of[at - first + 1]
    local row = not missing and (rows[member] or pending_row(member))
    if not row or row[2] ~= consumer or row[4] + base ~= grant or current and tonumber(current) <= now then
      reply[#reply + 1] = 0
    else
      reply[#reply + 1] = 1
      extended[#extended + 1] = ends
      extended[#extended + 1] = member
    end
  end
end

local at = 3
while ARGV[at] do
  local consumer, grant, last = ARGV[at], tonumber(ARGV[at + 1]), at + HEAD - 1 + ARGV[at + 2]
  for first = at + HEAD, last, MANY do extend(first, math.min(first + MANY - 1, last), consumer, grant) end
  at = last + 1
end
for first = 1, #extended, 2 * MANY do
  redis.call('ZADD', due, unpack(extended, first, math.min(first + 2 * MANY - 1, #extended)))
end
return reply
