-- What a reader of sums has to know of a tenant, and which counters it has; with `anew`, all of them are dropped.
-- beside: anew and forget (a subject whose counters are dropped, '' for none), as MessagePack; id and event, as it is
--         kept, of each that is in the store and that nobody is to count any more

local ask = cmsgpack.unpack(ARGV[4])
open_tenant()
check_events()
for index = 5, #ARGV, 2 do call('HSET', ROOT .. 'e', ARGV[index], ARGV[index + 1]) end
if ask.anew then begin_anew() end
if ask.forget ~= '' then call('DEL', ROOT .. ask.forget) end
save_subjects()

local feature_names = { 'messages', 'input_tokens', 'output_tokens', 'cost' }
local kept = call('HGET', ROOT, 'names')
kept = kept and kept ~= '' and cmsgpack.unpack(kept) or {}
for index = 1, #kept, 2 do feature_names[kept[index]] = kept[index + 1] end

local names = call('SRANDMEMBER', ROOT .. 's', LISTED_AT_ONCE)
names[#names + 1] = 't'
local counters = {}
for index = 1, #names do
  local name = names[index]
  local list = subject(name)
  if #list < FIRST and name ~= 't' then call('SREM', ROOT .. 's', name) end
  for c = FIRST, #list, STRIDE do
    counters[#counters + 1] = { name, feature_names[list[c]] or '', list[c + 1], list[c + 2], list[c + 5] }
  end
end
return with_events({ status = 'done', counters = counters })
