export default {
  base: './',
  resolve: { alias: { 'react-router-dom-v5-compat': 'react-router-dom' } },
  define: { 'process.env.NODE_ENV': '"production"', global: 'globalThis' },
  build: { chunkSizeWarningLimit: 20000, sourcemap: false, reportCompressedSize: false },
  logLevel: 'error',
};
