-- Remove dead letters of a group; put them back where that is asked for.
--
-- ARGV    group, 1 (put back) or 0 (remove for good), ids of letters…
-- returns for each id 1, or 0 where it was not there any more
-- bound   the letters that are named

local KNOWN = { 'ailf.origin', 'ailf.reason', 'ailf.error', 'ailf.attempts' } -- what `bury` in group.lua puts first
local MOST_DIGITS = 20
local taken = {}

-- Where the fields of the entry begin that became this letter; nil where another program wrote it. It is the test that
-- tells the two apart in a list, too.
local function begin_of_entry(fields)
  for at, name in ipairs(KNOWN) do
    if fields[2 * at - 1] ~= name then return nil end
  end
  local attempts = fields[2 * #KNOWN]
  local ours = #attempts <= MOST_DIGITS and string.find(attempts, '^%d+$')
  return ours and fields[2 * #KNOWN + 1] and 2 * #KNOWN + 1 or nil
end

local function put_back(letter, fields)
  local first = begin_of_entry(fields)
  local origin = first and fields[2] or letter
  first = first or 1
  local id = redis.call('XADD', again, '*', 'ailf.origin', origin, packed(fields, first))
  redis.pcall('XGROUP', 'CREATE', again, 'g', '0')
  -- By its id: what is read next may be another program's entry.
  redis.call('XCLAIM', again, 'g', WAITING, 0, id, 'RETRYCOUNT', 1, 'FORCE', 'JUSTID')
  local member = '~' .. id
  local how = how_of(fields, first)
  if not (how and hold_back(member, how)) then
    forgive(member)
    redis.call('ZADD', due, number(now), member)
  end
  rung = true
end

for i = 3, #ARGV do
  local letter = ARGV[2] == '1' and redis.call('XRANGE', dead, ARGV[i], ARGV[i])[1]
  -- First, as a server without memory refuses it only where nothing was written before.
  if letter then put_back(letter[1], letter[2]) end
  taken[#taken + 1] = redis.call('XDEL', dead, ARGV[i])
end
if redis.call('XLEN', dead) == 0 then redis.call('DEL', dead) end
ring()
return taken
