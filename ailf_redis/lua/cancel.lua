-- Remove an entry whose time has not come, for all groups.
--
-- KEYS[1] stream
-- ARGV    id, then what the keys of every group's due entries and bell begin with; the group's name follows
-- returns 1, or 0 where there is no such entry, and then nothing is changed
-- writes  KEYS[1] without TTL; the groups' helpers (see group.lua)

local stream, id = KEYS[1], ARGV[1]
local entry = redis.call('XRANGE', stream, id, id)[1]
if not entry or entry[2][1] ~= 'ailf.how' then return 0 end
if tonumber(string.match(entry[2][2], '^%d+')) <= now then return 0 end
redis.call('XDEL', stream, id)

for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name = map(flat).name
  let_find(stream, name, entry, now, ARGV[2] .. name, ARGV[3] .. name, ARGV[4] .. name, ARGV[5] .. name)
end
return 1
