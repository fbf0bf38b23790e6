-- What a reader of sums has to know of a tenant, and which counters it has; with `anew`, all of them are dropped.
-- beside: anew; waiting: name what is counted and not said to be draining; forget: a subject whose counters are
--         dropped, '' for none

local ask = cmsgpack.unpack(ARGV[4])
open_tenant()
check_events()
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
local waiting = {}
if ask.waiting then
  local events = call('HGETALL', ROOT .. 'e')
  for index = 1, #events, 2 do
    if events[index] ~= '' and string.sub(events[index + 1], 1, 1) == 'e' then
      waiting[#waiting + 1] = events[index]
    end
  end
end
return answer({
  status = 'done', waiting = waiting, inc = tenant[INC], drains = tenant[DRAINS], draining = draining(),
  counters = counters,
})
