-- Read the ids of entries, and how many bytes a reply has for each; the entries aren't sent.
--
-- KEYS[1] entries  a stream of entries, or of dead letters
-- ARGV    where the range begins and ends, as XRANGE takes it (XREVRANGE from the end), the most entries, 1 (from the
--         end) or 0
-- returns { id, bytes }…; fewer than there are, if they are large
-- writes  nothing
-- bound   the requested entries, one at a time, and none after ROOM bytes

local from, to, command = ARGV[1], ARGV[2], ARGV[4] == '1' and 'XREVRANGE' or 'XRANGE'
local ROOM = 1024 * 1024
local reply, room = {}, ROOM
for _ = 1, tonumber(ARGV[3]) do
  local entry = from and redis.call(command, KEYS[1], from, to, 'COUNT', 1)[1]
  if not entry then break end
  local bytes = bytes_of(entry[2])
  reply[#reply + 1], room = { entry[1], bytes }, room - bytes
  if room <= 0 then break end
  from = after(entry[1])
end
return reply
