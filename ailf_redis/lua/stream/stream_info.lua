-- Read the state of a stream; nothing is changed.
--
-- KEYS[1] stream
-- returns { entries, id of the first entry or '', id of the last one or '', number of groups, number of entries ever
--           added or -1 where the server doesn't know it }
-- writes  nothing
-- bound   the fields of XINFO STREAM, of which there are about twenty

local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then
  if not string.find(tostring(info.err), 'no such key', 1, true) then return info end -- tostring: for fakeredis
  return { 0, '', '', 0, -1 }
end
local fields = {}
for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
local first, last = fields['first-entry'], fields['last-entry']
return {
  fields['length'], first and first[1] or '', last and last[1] or '', fields['groups'], fields['entries-added'] or -1
}
