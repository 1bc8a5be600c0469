-- The ids of entries, and how many bytes a reply has for each; no entry travels.
--
-- KEYS[1] entries  a stream of entries, or of dead letters
-- ARGV    the first id and the last (or how a range begins and ends), how many at most, 1 (from the end) or 0
-- returns { id, bytes }…
-- writes  nothing
-- bound   the entries that are asked for, one at a time

local from, to, command = ARGV[1], ARGV[2], ARGV[4] == '1' and 'XREVRANGE' or 'XRANGE'
local found = {}
for _ = 1, tonumber(ARGV[3]) do
  local entry = from and redis.call(command, KEYS[1], from, to, 'COUNT', 1)[1]
  if not entry then break end
  found[#found + 1] = { entry[1], bytes_of(entry[2]) }
  from = after(entry[1])
end
return found
