-- Remove an entry whose time has not come, for all groups, and free the dedup id that it was added under.
--
-- KEYS[1] stream
-- ARGV    id, what the keys of dedup ids begin with, then what the keys of every group's due entries and bell begin with; the group's name follows
-- returns 1, or 0 where there is no such entry, and then nothing is changed
-- writes  KEYS[1] without TTL; the groups' helpers (see group.lua); the key of the dedup id (see add.lua), whose TTL stays
-- bound   the groups of the stream

local stream, id = KEYS[1], ARGV[1]
local entry = redis.call('XRANGE', stream, id, id)[1]
if not entry or entry[2][1] ~= 'ailf.how' then return 0 end
if tonumber(string.match(entry[2][2], '^%d+') or 0) <= now then return 0 end
redis.call('XDEL', stream, id)

-- The call that added it may be sent again: it is answered as before, and adds nothing. Anybody else adds again.
local function free(once)
  if string.sub(once, 1, #ARGV[2]) ~= ARGV[2] then return end
  local known = redis.pcall('GET', once)
  if type(known) == 'string' and string.match(short(known), '^%S+ %S+ (%S+)$') == entry[1] then
    redis.call('SET', once, known .. ' cancelled', 'KEEPTTL')
  end
end
if entry[2][3] == 'ailf.once' then free(entry[2][4]) end

for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name = map(flat).name
  let_find(stream, name, entry, now, ARGV[3] .. name, ARGV[4] .. name, ARGV[5] .. name, ARGV[6] .. name)
end
return 1
