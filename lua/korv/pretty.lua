--- JSON for people: indented, with the keys in order, in colours where the terminal has them. Nothing in it steers the terminal.
-- @module korv.pretty

local json = require "korv.core".json
local escape = require "korv.escape"

local COLORS = { name = "\27[36m", string = "\27[32m", number = "\27[33m", boolean = "\27[35m", userdata = "\27[35m" }
local PLAIN = "\27[0m"

local function is_array(value) return getmetatable(value) == getmetatable(json.array {}) or #value > 0 end

local write

-- `kind` is a name of COLORS.
local function write_text(out, kind, text)
  text = escape.json(text)
  out[#out + 1] = out.colors and COLORS[kind] .. text .. PLAIN or text
end

local function write_list(out, open, close, items, indent)
  if #items == 0 then
    out[#out + 1] = open .. close
    return
  end
  local inner = indent and indent .. "  "
  for i, item in ipairs(items) do
    out[#out + 1] = i == 1 and open or indent and "," or ", "
    if inner then out[#out + 1] = "\n" .. inner end
    if item.name then
      write_text(out, "name", json.encode(item.name))
      out[#out + 1] = ": "
    end
    write(out, item.value, inner)
  end
  out[#out + 1] = indent and "\n" .. indent .. close or close
end

local function members(object)
  local names, items = {}, {}
  for name in pairs(object) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do items[i] = { name = name, value = object[name] } end
  return items
end

local function elements(array)
  local items = {}
  for i, value in ipairs(array) do items[i] = { value = value } end
  return items
end

-- indent: nil where all of it goes on one line.
function write(out, value, indent)
  if type(value) ~= "table" then
    write_text(out, type(value), json.encode(value))
  elseif is_array(value) then
    write_list(out, "[", "]", elements(value), indent)
  else
    write_list(out, "{", "}", members(value), indent)
  end
end

--- Formats a value that JSON can hold.
-- @param value
-- @tparam[opt] table options `colors`: for a terminal that has them; `one_line`: not indented
-- @treturn string several lines, without a newline at the end
return function(value, options)
  options = options or {}
  local out = { colors = options.colors }
  write(out, value, not options.one_line and "" or nil)
  return table.concat(out)
end
