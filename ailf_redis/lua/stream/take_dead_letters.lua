-- Remove dead letters of a group; redrive them if that is requested.
--
-- ARGV    group, 1 (redrive) or 0 (delete), ids of dead letters…
-- returns for each id 1, or 0 if it wasn't there any more
-- bound   the named dead letters

local HEAD = { 'ailf.origin', 'ailf.reason', 'ailf.error', 'ailf.attempts' } -- see `move_to_dead_letters` in group.lua
local MOST_DIGITS = 20
local reply = {}

-- Return the index of the first field of the entry that became this dead letter; nil if another program wrote it. The
-- test is the same as the one that tells the two apart in a listing.
local function first_entry_field(fields)
  for at, name in ipairs(HEAD) do
    if fields[2 * at - 1] ~= name then return nil end
  end
  local attempts = fields[2 * #HEAD]
  local ours = #attempts <= MOST_DIGITS and string.find(attempts, '^%d+$')
  return ours and fields[2 * #HEAD + 1] and 2 * #HEAD + 1 or nil
end

local function redrive(dead_id, fields)
  local first = first_entry_field(fields)
  local origin = first and fields[2] or dead_id
  first = first or 1
  local id = redis.call('XADD', again, '*', 'ailf.origin', origin, packed(fields, first))
  redis.pcall('XGROUP', 'CREATE', again, 'g', '0')
  -- By its id: the next entry of the group may be another program's.
  redis.call('XCLAIM', again, 'g', WAITING, 0, id, 'RETRYCOUNT', 1, 'FORCE', 'JUSTID')
  local member = '~' .. id
  uncount(member)
  admit_redriven(member, options_of(fields, first))
  must_notify = true
end

for i = 3, #ARGV do
  local entry = ARGV[2] == '1' and redis.call('XRANGE', dead, ARGV[i], ARGV[i])[1]
  -- Before the XDEL: a server without memory refuses the XADD only if nothing was written before.
  if entry then redrive(entry[1], entry[2]) end
  reply[#reply + 1] = redis.call('XDEL', dead, ARGV[i])
end
if redis.call('XLEN', dead) == 0 then redis.call('DEL', dead) end
notify()
return reply
