--- JSON for people: indented, with the keys in order.
-- @module korv.pretty

local json = require "korv.core".json

local function is_array(value) return getmetatable(value) == getmetatable(json.array {}) or #value > 0 end

local write

local function write_list(out, open, close, items, indent)
  if #items == 0 then
    out[#out + 1] = open .. close
    return
  end
  local inner = indent .. "  "
  for i, item in ipairs(items) do
    out[#out + 1] = (i == 1 and open or ",") .. "\n" .. inner .. item.key
    write(out, item.value, inner)
  end
  out[#out + 1] = "\n" .. indent .. close
end

local function members(object)
  local names, items = {}, {}
  for name in pairs(object) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do items[i] = { key = json.encode(name) .. ": ", value = object[name] } end
  return items
end

local function elements(array)
  local items = {}
  for i, value in ipairs(array) do items[i] = { key = "", value = value } end
  return items
end

function write(out, value, indent)
  if type(value) ~= "table" then
    out[#out + 1] = json.encode(value)
  elseif is_array(value) then
    write_list(out, "[", "]", elements(value), indent)
  else
    write_list(out, "{", "}", members(value), indent)
  end
end

--- Formats a value that JSON can hold.
-- @param value
-- @treturn string several lines, without a newline at the end
return function(value)
  local out = {}
  write(out, value, "")
  return table.concat(out)
end
